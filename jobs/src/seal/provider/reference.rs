//! The name of a platform key version, as the keystore holds it: which kind of provider, and which key there.
//!
//! A reference never means "whatever is current": AWS keys are named by key ARN, for an alias can be pointed elsewhere,
//! and transit keys with their version. Names are no secrets.
use std::{fmt, path::PathBuf, str::FromStr};

/// A parsed reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KeyRef {
    /// `env:NAME`: 32 bytes in base64 in an environment variable.
    Env(String),
    /// `file:/path`: the same in a file.
    File(PathBuf),
    /// `aws-kms:ARN`
    AwsKms(AwsKey),
    /// `vault:MOUNT/KEY#VERSION`
    Vault(TransitKey),
}

/// The ARN of one key in AWS KMS.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AwsKey {
    arn: String,
    region: std::ops::Range<usize>,
}

/// One version of one key of a transit engine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TransitKey {
    /// Where the engine is mounted; may have several parts.
    pub mount: String,
    pub name: String,
    pub version: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeyRef {
    /// Not repeated, nor is the next: whoever mistook the reference for the key wrote the key.
    #[error("it names no key provider; a reference is env:NAME, file:/path, aws-kms:ARN or vault:MOUNT/KEY#VERSION")]
    Scheme,
    #[error("what follows env: is no variable's name: letters, digits and `_`, no digit first, as in env:REEVE_KEY_1")]
    Env,
    #[error("{0:?} is no absolute path without `..`, as in file:/etc/reeve/key-1")]
    File(String),
    #[error(
        "{0:?} is an alias, which can be pointed at another key: name the key itself, as in aws-kms:arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    )]
    AwsAlias(String),
    #[error(
        "{0:?} is no key ARN, as in aws-kms:arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    )]
    AwsArn(String),
    #[error("{0:?} names no version: put it behind the key, as in vault:transit/reeve#1")]
    VaultVersion(String),
    #[error(
        "{0:?} is no transit key: a mount and a key of letters, digits, `_`, `-` and `.`, as in vault:transit/reeve#1"
    )]
    Vault(String),
}

impl AwsKey {
    pub fn arn(&self) -> &str {
        &self.arn
    }

    pub fn region(&self) -> &str {
        &self.arn[self.region.clone()]
    }

    fn parse(arn: &str) -> Result<Self, InvalidKeyRef> {
        let parts: Vec<_> = arn.split(':').collect();
        let [start, partition, service, region, account, resource] = parts[..] else {
            return Err(InvalidKeyRef::AwsArn(arn.to_owned()));
        };
        if resource.starts_with("alias/") {
            return Err(InvalidKeyRef::AwsAlias(arn.to_owned()));
        }
        let is_name = |name: &str| {
            !name.is_empty() && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let is_account = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
        let is_arn = start == "arn"
            && partition.starts_with("aws")
            && service == "kms"
            && [partition, region].into_iter().all(|name| is_name(name) && name == name.to_ascii_lowercase())
            && is_account
            && resource.strip_prefix("key/").is_some_and(is_name);
        if !is_arn {
            return Err(InvalidKeyRef::AwsArn(arn.to_owned()));
        }
        let begin = [start, partition, service].iter().map(|part| part.len() + 1).sum();
        Ok(Self { arn: arn.to_owned(), region: begin..begin + region.len() })
    }
}

impl TransitKey {
    fn parse(text: &str) -> Result<Self, InvalidKeyRef> {
        let (path, version) = text.rsplit_once('#').ok_or_else(|| InvalidKeyRef::VaultVersion(text.to_owned()))?;
        let version = version
            .parse()
            .ok()
            .filter(|parsed: &u32| *parsed > 0 && parsed.to_string() == version)
            .ok_or_else(|| InvalidKeyRef::VaultVersion(text.to_owned()))?;
        // Parts go into a URL: no dots alone, nothing to be escaped.
        let is_part = |part: &str| {
            !part.is_empty()
                && part.bytes().any(|b| b != b'.')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        };
        let (mount, name) = path.rsplit_once('/').ok_or_else(|| InvalidKeyRef::Vault(text.to_owned()))?;
        if !is_part(name) || !mount.split('/').all(is_part) {
            return Err(InvalidKeyRef::Vault(text.to_owned()));
        }
        Ok(Self { mount: mount.to_owned(), name: name.to_owned(), version })
    }
}

impl FromStr for KeyRef {
    type Err = InvalidKeyRef;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (scheme, rest) = text.split_once(':').ok_or(InvalidKeyRef::Scheme)?;
        match scheme {
            "env" => {
                let is_name = rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
                    && rest.bytes().next().is_some_and(|b| !b.is_ascii_digit());
                is_name.then(|| Self::Env(rest.to_owned())).ok_or(InvalidKeyRef::Env)
            }
            "file" => {
                let is_path = rest.starts_with('/')
                    && !rest.ends_with('/')
                    && !rest.split('/').any(|part| part == "..")
                    && !rest.chars().any(char::is_control);
                is_path.then(|| Self::File(PathBuf::from(rest))).ok_or_else(|| InvalidKeyRef::File(rest.to_owned()))
            }
            "aws-kms" => AwsKey::parse(rest).map(Self::AwsKms),
            "vault" => TransitKey::parse(rest).map(Self::Vault),
            _ => Err(InvalidKeyRef::Scheme),
        }
    }
}

impl fmt::Display for KeyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::AwsKms(key) => write!(f, "aws-kms:{}", key.arn),
            Self::Vault(TransitKey { mount, name, version }) => write!(f, "vault:{mount}/{name}#{version}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_reads_back_as_it_was_written() {
        for text in [
            "env:REEVE_KEY_1",
            "env:_k",
            "file:/etc/reeve/key-1",
            "aws-kms:arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
            "aws-kms:arn:aws-us-gov:kms:us-gov-west-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab",
            "vault:transit/reeve#1",
            "vault:team/a/transit/reeve.key_a-b#4294967295",
        ] {
            assert_eq!(text.parse::<KeyRef>().expect(text).to_string(), text);
        }
        let Ok(KeyRef::AwsKms(key)) = "aws-kms:arn:aws:kms:eu-west-1:111122223333:key/k".parse() else { panic!() };
        assert_eq!((key.region(), key.arn()), ("eu-west-1", "arn:aws:kms:eu-west-1:111122223333:key/k"));
    }

    #[test]
    fn what_names_no_one_key_version_is_refused_with_an_example() {
        for (text, says) in [
            ("", "env:NAME"),
            ("REEVE_KEY", "env:NAME"),
            ("gcp-kms:x", "env:NAME"),
            ("env:", "env:REEVE_KEY_1"),
            ("env:1KEY", "env:REEVE_KEY_1"),
            ("env:A B", "env:REEVE_KEY_1"),
            ("file:key", "absolute"),
            ("file:/etc/../key", "absolute"),
            ("file:/etc/reeve/", "absolute"),
            ("file:/etc/\nkey", "absolute"),
            ("aws-kms:arn:aws:kms:eu-west-1:111122223333:alias/reeve", "name the key itself"),
            ("aws-kms:1234abcd-12ab-34cd-56ef-1234567890ab", "key ARN"),
            ("aws-kms:arn:aws:s3:eu-west-1:111122223333:key/k", "key ARN"),
            ("aws-kms:arn:aws:kms::111122223333:key/k", "key ARN"),
            ("aws-kms:arn:aws:kms:evil.example/:111122223333:key/k", "key ARN"),
            ("aws-kms:arn:aws:kms:eu-west-1:1111:key/k", "key ARN"),
            ("aws-kms:arn:aws:kms:eu-west-1:111122223333:key/", "key ARN"),
            ("aws-kms:arn:aws:kms:eu-west-1:111122223333:key/k:x", "key ARN"),
            ("vault:transit/reeve", "vault:transit/reeve#1"),
            ("vault:transit/reeve#", "vault:transit/reeve#1"),
            ("vault:transit/reeve#0", "vault:transit/reeve#1"),
            ("vault:transit/reeve#01", "vault:transit/reeve#1"),
            ("vault:transit/reeve#latest", "vault:transit/reeve#1"),
            ("vault:reeve#1", "no transit key"),
            ("vault:transit/#1", "no transit key"),
            ("vault:/reeve#1", "no transit key"),
            ("vault:../sys/reeve#1", "no transit key"),
            ("vault:transit/re?ve#1", "no transit key"),
        ] {
            let said = text.parse::<KeyRef>().expect_err(text).to_string();
            assert!(said.contains(says), "{text}: {said}");
        }
    }

    #[test]
    fn a_key_in_a_references_place_is_not_repeated() {
        const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        for text in [KEY.to_owned(), format!("env:{KEY}"), format!("key:{KEY}")] {
            let error = text.parse::<KeyRef>().expect_err("no reference");
            assert!(!format!("{error} {error:?}").contains(&KEY[..8]), "{error}");
        }
    }
}
