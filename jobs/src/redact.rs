//! Types that cannot be printed by accident: the first layer against secrets in logs. The scrubber is the second.

/// Holds a secret or personal value. `Debug` and `Display` print `[redacted]`; [`Redacted::reveal`] is the only way in,
/// so a search for it finds every use.
#[derive(Clone, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(transparent)]
pub struct Redacted<T>(T);

impl<T> Redacted<T> {
    pub fn new(value: T) -> Self {
        Self(value)
    }

    pub fn reveal(&self) -> &T {
        &self.0
    }
}

impl<T> std::fmt::Debug for Redacted<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl<T> std::fmt::Display for Redacted<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::Redacted;

    #[test]
    fn a_redacted_value_is_not_printed() {
        #[derive(Debug)]
        #[allow(dead_code, reason = "read through Debug")]
        struct Config {
            url: Redacted<String>,
        }
        let shown = format!("{:?} {}", Config { url: Redacted::new("hunter2".into()) }, Redacted::new("hunter2"));
        assert!(!shown.contains("hunter2"), "{shown}");
        assert_eq!(shown.matches("[redacted]").count(), 2);
    }
}
