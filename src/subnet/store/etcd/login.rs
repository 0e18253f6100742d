//! A login that etcd refused, and when it may be tried again.

use std::time::Duration;

use tokio::time::Instant;

/// A wrong password does not get right by trying, and each try costs etcd a bcrypt: whoever
/// asks within this time after a refusal gets the same words without etcd being asked.
const REFUSED_FOR: Duration = Duration::from_secs(30);

/// A login that etcd refused.
#[derive(Debug, Clone)]
pub(in super::super) struct RefusedLogin {
    at: Instant,
    words: String,
}

impl RefusedLogin {
    /// Just now, in etcd's words.
    pub(in super::super) fn now(words: String) -> Self {
        let at = Instant::now();
        Self { at, words }
    }

    /// What to say instead of trying; `None` when it may be tried.
    pub(in super::super) fn still(&self) -> Option<String> {
        let left = REFUSED_FOR.checked_sub(self.at.elapsed())?;
        (!left.is_zero()).then(|| {
            format!(
                "{} (tried again in {} s at the earliest)",
                self.words,
                left.as_secs() + 1
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_refused_login_is_not_tried_for_half_a_minute() {
        let refused = RefusedLogin::now("no".into());
        assert!(refused.still().unwrap().starts_with("no (tried again in 3"));
        tokio::time::advance(Duration::from_secs(29)).await;
        assert!(refused.still().is_some());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(refused.still(), None);
    }
}
