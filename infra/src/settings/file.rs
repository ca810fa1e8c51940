//! The configuration file as it is printed: every key with its documentation and a value, without secrets.
//!
//! What was printed can be given to the program again. A secret that is not shown has to be put in first: a file that
//! silently lost the key of its viewers' tokens would open private streams to everybody.

use std::fmt::Write as _;

use shoal_credentials::HIDDEN;
use toml::{Table, Value};

use super::{FILE_ONLY, Settings, documented};
use crate::Error;

/// A secret that is not of the type [`shoal_credentials::Secret`], which hides itself: viewers are told it, in a message of
/// the tracker's. Of all other settings that are URLs, users, passwords and queries are hidden.
const TOLD_TO_VIEWERS: &str = "tracker.ice_servers.credential";

impl Settings {
    /// The default configuration file: each key with its documentation.
    #[must_use]
    pub fn default_file() -> String {
        Self::default().to_file()
    }

    /// The configuration file that makes these settings: each key with its documentation. Secrets are not in it.
    #[must_use]
    pub fn to_file(&self) -> String {
        let mut values = Table::try_from(self).expect("all settings can be written as TOML");
        for (table, value) in &mut values {
            hide(table, value);
        }
        let what = if *self == Self::default() {
            "# Shoal's settings with their defaults, as `shoal serve --print-config` prints them. Every line may be left out.\n"
                .to_owned()
        } else {
            format!(
                "# Shoal's settings, as `shoal serve --print-config` has put them together from the file, the environment and the flags\n\
                 # that it was given. Where it says {HIDDEN:?} there is a secret, which has to be put in again.\n"
            )
        };
        let mut out = format!(
            "{what}\
             # Each can be overridden by an environment variable: `SHOAL_` + table + `_` + key in capitals, such as\n\
             # SHOAL_SEGMENTER_PART_MS; items of a list are separated by commas. Lists of tables can be set in the file\n\
             # only: {}.\n",
            FILE_ONLY.join(", ")
        );
        for (table, doc, keys) in documented() {
            out.push('\n');
            for line in *doc {
                writeln!(out, "#{line}").expect("writing to a string");
            }
            writeln!(out, "[{table}]").expect("writing to a string");
            for (key, doc) in *keys {
                for line in *doc {
                    writeln!(out, "#{line}").expect("writing to a string");
                }
                match values.get(*table).and_then(|table| table.get(*key)) {
                    Some(value) => writeln!(out, "{key} = {value}"),
                    // A setting that is absent.
                    None => writeln!(out, "# {key} ="),
                }
                .expect("writing to a string");
            }
        }
        out
    }
}

/// Hides what is secret in a setting, or in those of a table.
fn hide(setting: &str, value: &mut Value) {
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                hide(&format!("{setting}.{key}"), value);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| hide(setting, item)),
        // An empty one says that there is none.
        Value::String(text) if setting == TOLD_TO_VIEWERS && !text.is_empty() => *text = HIDDEN.to_owned(),
        Value::String(text) => *text = without_secrets(text),
        _ => {}
    }
}

/// A URL without user, password and query, which may hold a token; any other text as it is.
fn without_secrets(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let (shown, query) =
        rest.split_once('?').map_or((rest, String::new()), |(shown, _)| (shown, format!("?{HIDDEN}")));
    let (authority, path) = shown.split_at(shown.find('/').unwrap_or(shown.len()));
    let host = authority.rsplit_once('@').map(|(_, host)| format!("{HIDDEN}@{host}"));
    format!("{scheme}://{}{path}{query}", host.as_deref().unwrap_or(authority))
}

/// Refuses values that were printed in place of secrets.
///
/// # Errors
/// [`Error::Settings`] naming the first setting that has one.
pub(super) fn refuse_hidden(values: &Table) -> Result<(), Error> {
    for (table, values) in values {
        for (key, value) in values.as_table().into_iter().flatten() {
            if has_hidden(value) {
                return Err(Error::Settings(format!(
                    "{table}.{key}: {HIDDEN:?} stands for a secret that --print-config did not show; put the secret in"
                )));
            }
        }
    }
    Ok(())
}

fn has_hidden(value: &Value) -> bool {
    match value {
        Value::Table(table) => table.values().any(has_hidden),
        Value::Array(items) => items.iter().any(has_hidden),
        Value::String(text) => text.contains(HIDDEN),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::load;
    use super::*;

    #[test]
    fn default_file_is_read_back_as_the_defaults() {
        assert_eq!(load(&Settings::default_file(), &[]).unwrap(), Settings::default());
    }

    #[test]
    fn file_in_deploy_is_the_one_that_is_printed() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/shoal.toml");
        let found = std::fs::read_to_string(path).unwrap();
        assert!(
            found == Settings::default_file(),
            "infra/deploy/shoal.toml is stale: `cargo run -p shoal -- serve --print-config > infra/deploy/shoal.toml`"
        );
    }

    /// One of each kind of value, and every list of tables.
    const SET: &str = "[http]\nlisten = \"127.0.0.1:1\"\n\
        [ingest]\ntcp_enabled = false\nauth_open_to = \"nobody\"\npublic_ips = [\"192.0.2.1\", \"b.example\"]\n\
        ice_servers = [{ url = \"turn:a.example?transport=udp\", username = \"anna\" }]\n\
        [segmenter]\npart_ms = 400\nladder = [\"480\", \"cam=720:2500\"]\n\
        [[pull.streams]]\nname = \"news\"\nurl = \"https://a.example/x.m3u8\"\nhosts = [\"b.example\"]\n\
        [[tracker.ice_servers]]\nurls = [\"stun:a.example\"]\n";

    #[test]
    fn settings_without_secrets_are_read_back_as_they_were() {
        let settings = load(SET, &[]).unwrap();
        let printed = settings.to_file();
        assert_eq!(load(&printed, &[]).unwrap(), settings, "{printed}");
        assert!(
            printed.contains("\npart_ms = 400\n") && !printed.contains("with their defaults"),
            "{printed}"
        );
    }

    /// The settings whose texts are secrets, wholly.
    const SECRETS: &[&str] = &[
        "ingest.ice_servers.credential",
        "ingest.jwt_hs256_secret",
        "ingest.stream_keys",
        "pull.streams.headers",
        "segmenter.s3_secret_access_key",
        "tracker.admin_token",
        TOLD_TO_VIEWERS,
        "tracker.secret",
        "tracker.turn_secret",
        "tracker.viewer_token_secret",
    ];

    /// A word that no documentation has, 64 hexadecimal digits long, so that it is a secret for every purpose.
    const MARK: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    /// Settings that hold [`MARK`], each in one place: in every key that is a text or a list of texts and takes it, and
    /// in the texts of lists of tables.
    fn marked() -> Vec<(String, Settings)> {
        let mut marked = Vec::new();
        let mut add = |place: String, text: String| {
            if let Ok(settings) = load(&text, &[]) {
                assert_ne!(settings, Settings::default(), "{place} is not kept: {text}");
                marked.push((place, settings));
            }
        };
        for (table, _, keys) in documented() {
            for (key, _) in *keys {
                for value in [format!("{MARK:?}"), format!("[{MARK:?}]")] {
                    add(format!("{table}.{key}"), format!("[{table}]\n{key} = {value}\n"));
                }
            }
        }
        for (list, keys) in [
            ("ingest.ice_servers", &["url", "username", "credential"][..]),
            ("pull.streams", &["name", "url", "headers", "hosts"]),
            ("tracker.ice_servers", &["urls", "username", "credential"]),
        ] {
            for key in keys {
                // The tracker's servers have to have URLs.
                let urls = if list == "tracker.ice_servers" && *key != "urls" { "urls = []\n" } else { "" };
                for value in [format!("{MARK:?}"), format!("[{MARK:?}]")] {
                    add(format!("{list}.{key}"), format!("[[{list}]]\n{urls}{key} = {value}\n"));
                }
            }
        }
        marked
    }

    #[test]
    fn what_the_services_hide_in_logs_is_not_printed_and_not_taken_back() {
        let mut hidden = Vec::new();
        for (place, settings) in marked() {
            let printed = settings.to_file();
            assert_eq!(!printed.contains(MARK), SECRETS.contains(&place.as_str()), "{place}");
            // A source's URL is not shown where it is none at all.
            if format!("{settings:?}").contains(MARK) || place == "pull.streams.url" {
                assert_eq!(load(&printed, &[]).unwrap(), settings, "{place}");
                continue;
            }
            let error = load(&printed, &[]).unwrap_err();
            assert!(
                error.contains("(not shown)") && place.starts_with(error_key(&error)),
                "{place}: {error}"
            );
            hidden.push(place);
        }
        hidden.sort();
        assert_eq!(hidden, SECRETS);
    }

    fn error_key(error: &str) -> &str {
        error.strip_prefix("settings: ").and_then(|rest| rest.split(':').next()).unwrap_or(error)
    }

    #[test]
    fn variable_puts_in_what_the_file_does_not_show() {
        let text = format!("[tracker]\nadmin_token = {HIDDEN:?}\n");
        assert!(load(&text, &[]).unwrap_err().contains("tracker.admin_token"));
        let settings = load(&text, &[("SHOAL_TRACKER_ADMIN_TOKEN", "abc")]).unwrap();
        assert_eq!(settings.tracker.admin_token.expose(), "abc");
    }

    #[test]
    fn urls_are_shown_without_what_may_be_secret() {
        for (text, shown) in [
            ("https://a.example:1/x.m3u8", "https://a.example:1/x.m3u8"),
            ("https://a.example/x?token=b", "https://a.example/x?(not shown)"),
            ("https://anna:b@c@a.example/x@y", "https://(not shown)@a.example/x@y"),
            ("https://a.example?b=c/d", "https://a.example?(not shown)"),
            ("turn:a.example?transport=udp", "turn:a.example?transport=udp"),
            ("", ""),
        ] {
            assert_eq!(without_secrets(text), shown);
        }
    }
}
