//! Who has been told how many addresses: the budget of introductions across networks.
//!
//! Pure. Each introduction tells both sides an address, so both pay, each from all of its accounts. This bounds how many
//! addresses somebody can collect, however often he joins and with how many tokens. Shared by the swarms of our own
//! protocol (one ledger each) and by `/announce` (one for all).

use std::collections::BTreeMap;

use super::bucket::{Bucket, Rate};
use super::member::{Account, Accounts};

/// Accounts are looked through for such that may be forgotten this often.
const SWEEP_MS: u64 = 60_000;

/// Budgets by account.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    accounts: BTreeMap<Account, Bucket>,
    swept_ms: u64,
}

impl Ledger {
    /// Takes one introduction from all accounts of the two, or from none.
    pub(crate) fn charge(&mut self, rate: Rate, now_ms: u64, one: Accounts, other: Accounts) -> bool {
        self.sweep(rate, now_ms);
        // Bearers of one token tell each other nothing that its owner could not have asked them.
        let is_shared = |account: &Account| {
            one.iter().any(|known| known == *account) && other.iter().any(|known| known == *account)
        };
        let charged: Vec<Account> =
            one.iter().chain(other.iter()).filter(|account| !is_shared(account)).collect();
        for (at, account) in charged.iter().enumerate() {
            let bucket = self.accounts.entry(*account).or_insert_with(|| Bucket::full(rate, now_ms));
            if !bucket.take(rate, now_ms, 1) {
                for paid in &charged[..at] {
                    if let Some(bucket) = self.accounts.get_mut(paid) {
                        bucket.give_back(rate, 1);
                    }
                }
                return false;
            }
        }
        true
    }

    /// Forgets accounts that say no more than new ones would.
    pub(crate) fn sweep(&mut self, rate: Rate, now_ms: u64) {
        if now_ms.saturating_sub(self.swept_ms) >= SWEEP_MS {
            self.swept_ms = now_ms;
            self.accounts.retain(|_, bucket| !bucket.is_full(rate, now_ms));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_introduction_that_one_side_cannot_pay_costs_the_other_nothing() {
        let rate = Rate { per_hour: 0, burst: 2 };
        let at = |text: &str| Accounts::at(text.parse().unwrap());
        let mut ledger = Ledger::default();
        let mut charge = |one: &str, other: &str| ledger.charge(rate, 0, at(one), at(other));
        assert!(charge("5.6.7.8", "1.1.1.1") && charge("5.6.7.8", "2.2.2.2"));
        assert!(!charge("3.3.3.3", "5.6.7.8") && !charge("5.6.7.8", "3.3.3.3"));
        assert!(charge("3.3.3.3", "4.4.4.4") && charge("3.3.3.3", "4.4.4.4"), "nothing was taken");
        assert!(!charge("3.3.3.3", "4.4.4.4"));
        assert!(charge("2a01:1:2::1", "2a01:1:3::1") && charge("2a01:1:2:9::1", "2a01:1:4::1"));
        assert!(!charge("2a01:1:2:8::1", "2a01:1:5::1"), "one customer's addresses are one account");
    }
}
