//! An ordered map in one sorted vector.
//!
//! Each map here holds a few dozen entries under a limit: there a vector is faster than a tree, iterates in a fixed
//! order, and compiles to a fraction of the code, which browsers download.

/// So many entries at the end are looked at first.
const TAIL: usize = 12;

/// Entries sorted by key.
#[derive(Clone, Debug)]
pub(crate) struct Map<K, V>(Vec<(K, V)>);

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Ord + Copy, V> Map<K, V> {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Where the key is, or where it would be.
    fn find(&self, key: &K) -> usize {
        // What is asked for is mostly the newest, and the newest keys are mostly the last: these few are in the cache. By hand,
        // because the library's search is twice the code for each type.
        let (mut at, mut end) = (0, self.0.len());
        let mut middle = end.saturating_sub(TAIL);
        while at < end {
            if self.0[middle].0 < *key {
                at = middle + 1;
            } else {
                end = middle;
            }
            middle = (at + end) / 2;
        }
        at
    }

    pub(crate) fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        let (found, value) = self.0.get(self.find(key))?;
        (found == key).then_some(value)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let at = self.find(key);
        let (found, value) = self.0.get_mut(at)?;
        (found == key).then_some(value)
    }

    /// The entry that is so many before that of a key, or before where that would be.
    pub(crate) fn before(&mut self, key: &K, count: usize) -> Option<&mut V> {
        let at = self.find(key).checked_sub(count)?;
        self.0.get_mut(at).map(|(_, value)| value)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        match self.get_mut(&key) {
            Some(old) => *old = value,
            None => self.0.insert(self.find(&key), (key, value)),
        }
    }

    pub(crate) fn get_or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        let at = self.find(&key);
        if self.0.get(at).is_none_or(|(found, _)| *found != key) {
            self.0.insert(at, (key, make()));
        }
        &mut self.0[at].1
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.find(key);
        if self.0.get(at)?.0 == *key { Some(self.0.remove(at).1) } else { None }
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.0.iter_mut().map(|(key, value)| (&*key, value))
    }

    /// The keys of the entries that something is true of, for changing them in turn.
    pub(crate) fn keys_where(&self, is_meant: &dyn Fn(K, &V) -> bool) -> Vec<K> {
        let mut keys = Vec::new();
        for (key, value) in self.iter() {
            if is_meant(*key, value) {
                keys.push(*key);
            }
        }
        keys
    }

    pub(crate) fn values(&self) -> impl DoubleEndedIterator<Item = &V> {
        self.0.iter().map(|(_, value)| value)
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.0.iter_mut().map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    proptest::proptest! {
        #[test]
        fn behaves_like_a_tree(steps in proptest::collection::vec((0_u8..40, 0_u8..3), 0..200)) {
            let (mut map, mut tree) = (Map::new(), BTreeMap::new());
            for (key, step) in steps {
                match step {
                    0 => {
                        map.insert(key, step);
                        tree.insert(key, step);
                    }
                    1 => assert_eq!(map.remove(&key), tree.remove(&key)),
                    _ => assert_eq!(map.get_or_insert_with(key, || 9), tree.entry(key).or_insert(9)),
                }
                assert_eq!(map.get(&key), tree.get(&key));
            }
            assert!(map.iter().eq(tree.iter()));
        }
    }
}
