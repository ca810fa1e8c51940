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
    fn find(&self, key: &K) -> Result<usize, usize> {
        // What is asked for is mostly the newest, and the newest keys are mostly the last: these few are in the cache.
        let tail = self.0.len().saturating_sub(TAIL);
        let from = if self.0.get(tail).is_some_and(|(first, _)| first <= key) { tail } else { 0 };
        let at = from + self.0[from..].partition_point(|(other, _)| other < key);
        if self.0.get(at).is_some_and(|(other, _)| other == key) { Ok(at) } else { Err(at) }
    }

    pub(crate) fn contains_key(&self, key: &K) -> bool {
        self.find(key).is_ok()
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        let at = self.find(key).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let at = self.find(key).ok()?;
        self.0.get_mut(at).map(|(_, value)| value)
    }

    /// The entry that is so many before that of a key.
    pub(crate) fn before(&mut self, key: &K, count: usize) -> Option<&mut V> {
        let at = self.find(key).ok()?.checked_sub(count)?;
        self.0.get_mut(at).map(|(_, value)| value)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        match self.find(&key) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => self.0.insert(at, (key, value)),
        }
    }

    pub(crate) fn get_or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        let at = match self.find(&key) {
            Ok(at) => at,
            Err(at) => {
                self.0.insert(at, (key, make()));
                at
            }
        };
        &mut self.0[at].1
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.find(key).ok()?;
        Some(self.0.remove(at).1)
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
