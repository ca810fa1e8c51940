//! The configuration: what can be set, where it comes from, and whether it makes sense.
//!
//! Later sources win: default, file, environment (`SHOAL_TABLE_KEY`), command line. Nothing is opened before
//! [`Settings::validate`] has passed.

mod file;
mod tables;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use self::tables::{Http, Keys, Log};
use crate::Error;

/// `(table, documentation, [(key, documentation)])`, from the doc comments of the structs; made by the build script.
#[expect(clippy::type_complexity, reason = "generated, and read in one place")]
static DOCUMENTATION: &[(&str, &[&str], &[(&str, &[&str])])] =
    include!(concat!(env!("OUT_DIR"), "/settings.rs"));

/// The prefix of environment variables that hold settings.
const ENVIRONMENT_PREFIX: &str = "SHOAL_";

/// Lists of tables: a variable's text can't hold them.
const FILE_ONLY: &[&str] = &["ingest.ice_servers", "pull.streams", "tracker.ice_servers"];

/// Everything that can be set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The HTTP port.
    pub http: Http,
    /// Publishers.
    pub ingest: shoal_ingest::Config,
    /// Parts, segments, playlists, and the origin that serves them.
    pub segmenter: shoal_segmenter::Config,
    /// Streams that are pulled from other origins.
    pub pull: shoal_segmenter::pull::Config,
    /// Swarms.
    pub tracker: shoal_tracker::Config,
    /// The origin's identity.
    pub keys: Keys,
    /// Logs.
    pub log: Log,
}

impl Settings {
    /// Reads the file, if one is named, and lets the environment override it.
    ///
    /// # Errors
    /// [`Error::Settings`] with file and line, or the variable's name, and what is wrong.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Error> {
        let mut values = match file {
            None => toml::Table::new(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| Error::Settings(format!("{}: {error}", path.display())))?;
                parse(&text).map_err(|error| Error::Settings(format!("{}:{error}", path.display())))?
            }
        };
        overlay(&mut values, environment)?;
        file::refuse_hidden(&values)?;
        values.try_into().map_err(|error: toml::de::Error| Error::Settings(one_line(error.message())))
    }

    /// Checks ranges and what has to fit together.
    ///
    /// # Errors
    /// [`Error::Settings`] naming the key, its value and what is allowed.
    pub fn validate(&self) -> Result<(), Error> {
        self.http.validate()?;
        self.ingest.validate().map_err(Error::Settings)?;
        self.segmenter.validate().map_err(|error| Error::Settings(error.to_string()))?;
        self.pull.validate().map_err(|error| Error::Settings(error.to_string()))?;
        self.tracker.validate().map_err(|error| Error::Settings(error.to_string()))?;
        self.validate_store()?;
        self.validate_secrets()?;
        self.log.validate()
    }
}

impl Settings {
    /// Without a key that stays, an origin would take its recordings in a store for those of others: never deleted,
    /// and closed ten minutes after a crash only.
    fn validate_store(&self) -> Result<(), Error> {
        let is_shared = self.segmenter.storage_target().is_some_and(|target| target.starts_with("s3://"));
        if is_shared && self.segmenter.recording && self.keys.signing_key_file.is_empty() {
            let reason = "recordings in an S3 store need keys.signing_key_file: \
                by its key an origin knows its own after a restart";
            return Err(Error::Settings(reason.to_owned()));
        }
        Ok(())
    }

    /// Both kinds of tokens name a stream in the same claim, and nothing but the secret or the audience tells them apart:
    /// with one secret, publishers' tokens have to name what viewers' tokens do not.
    fn validate_secrets(&self) -> Result<(), Error> {
        let (ingest, tracker) = (&self.ingest, &self.tracker);
        if ingest.jwt_hs256_secret.is_empty() || ingest.jwt_hs256_secret != tracker.viewer_token_secret {
            return Ok(());
        }
        let reason = if ingest.jwt_audience.is_empty() {
            "ingest.jwt_hs256_secret and tracker.viewer_token_secret are the same: \
                every viewer could publish with the token that lets him watch. Take two secrets, or set \
                ingest.jwt_audience and name it in the tokens of publishers only"
        } else if ingest.jwt_audience == tracker.viewer_token_audience {
            "ingest.jwt_hs256_secret and tracker.viewer_token_secret are the same, and so are \
                ingest.jwt_audience and tracker.viewer_token_audience: every viewer could publish with the token \
                that lets him watch. Take two secrets or two audiences"
        } else {
            return Ok(());
        };
        Err(Error::Settings(reason.to_owned()))
    }
}

/// The tables that this program has.
fn documented() -> impl Iterator<Item = &'static (&'static str, &'static [&'static str], Keyed)> {
    let defaults = defaults();
    DOCUMENTATION.iter().filter(move |(table, ..)| defaults.contains_key(*table))
}

type Keyed = &'static [(&'static str, &'static [&'static str])];

fn defaults() -> toml::Table {
    toml::Table::try_from(Settings::default()).expect("every default can be written as TOML")
}

/// Environment variables that look like settings but are none; worth a warning, since a misspelt one has no
/// effect. Not an error: container platforms set variables of such names by themselves.
pub fn unknown_variables<'a>(environment: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let known = variables();
    let tables: Vec<String> =
        documented().map(|(table, ..)| format!("{ENVIRONMENT_PREFIX}{}_", table.to_uppercase())).collect();
    environment
        .into_iter()
        .filter(|name| tables.iter().any(|table| name.starts_with(table)) && !known.contains_key(*name))
        .map(str::to_owned)
        .collect()
}

/// The variables that are settings, each with its table, key and default.
fn variables() -> BTreeMap<String, (&'static str, &'static str, Option<toml::Value>)> {
    let defaults = defaults();
    let mut variables = BTreeMap::new();
    for (table, _, keys) in documented() {
        for (key, _) in *keys {
            let name = format!("{ENVIRONMENT_PREFIX}{}_{}", table.to_uppercase(), key.to_uppercase());
            let default = defaults.get(*table).and_then(|table| table.get(*key)).cloned();
            variables.insert(name, (*table, *key, default));
        }
    }
    variables
}

/// Parses a whole file against the types, so that an error can name its line, and returns the values in it.
fn parse(text: &str) -> Result<toml::Table, String> {
    let located = |error: toml::de::Error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        format!("{line}: {}", one_line(error.message()))
    };
    toml::from_str::<Settings>(text).map_err(located)?;
    toml::from_str(text).map_err(located)
}

fn overlay(
    values: &mut toml::Table,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<(), Error> {
    let known = variables();
    for (name, text) in environment {
        let Some((table, key, default)) = known.get(&name) else { continue };
        let refused = |reason: String| Error::Settings(format!("{name}: {reason}"));
        let setting = format!("{table}.{key}");
        if FILE_ONLY.contains(&setting.as_str()) {
            return Err(refused(format!("{setting} is a list of tables, which can be set in the file only")));
        }
        let value = from_variable(&text, default.as_ref())
            .ok_or_else(|| refused(format!("{text:?} is not {}", kind(default.as_ref()))))?;
        // By itself, because an error of the whole would not say where the value came from.
        let alone = toml::Table::from_iter([((*key).to_owned(), value.clone())]);
        toml::Table::from_iter([((*table).to_owned(), toml::Value::Table(alone))])
            .try_into::<Settings>()
            .map_err(|error| refused(one_line(error.message())))?;
        let table = values.entry(*table).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        if let toml::Value::Table(table) = table {
            table.insert((*key).to_owned(), value);
        }
    }
    Ok(())
}

/// Reads a variable's text as a value of the same kind as the default. Lists are separated by commas.
fn from_variable(text: &str, default: Option<&toml::Value>) -> Option<toml::Value> {
    let text = text.trim();
    Some(match default {
        Some(toml::Value::Integer(_)) => toml::Value::Integer(text.replace('_', "").parse().ok()?),
        Some(toml::Value::Float(_)) => toml::Value::Float(text.parse().ok()?),
        Some(toml::Value::Boolean(_)) => toml::Value::Boolean(text.parse().ok()?),
        Some(toml::Value::Array(_)) => toml::Value::Array(
            text.split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| toml::Value::String(item.to_owned()))
                .collect(),
        ),
        _ => toml::Value::String(text.to_owned()),
    })
}

fn kind(value: Option<&toml::Value>) -> &'static str {
    match value {
        Some(toml::Value::Integer(_)) => "a whole number",
        Some(toml::Value::Float(_)) => "a number",
        Some(toml::Value::Boolean(_)) => "true or false",
        Some(toml::Value::Array(_)) => "a list separated by commas",
        _ => "a text",
    }
}

fn one_line(message: &str) -> String {
    message.lines().map(str::trim).collect::<Vec<_>>().join("; ")
}

/// Refuses a value outside of its range.
fn within<T: PartialOrd + std::fmt::Display>(
    key: &str,
    value: T,
    allowed: std::ops::RangeInclusive<T>,
) -> Result<(), Error> {
    if allowed.contains(&value) {
        return Ok(());
    }
    Err(Error::Settings(format!("{key} = {value}: allowed is {} to {}", allowed.start(), allowed.end())))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    pub(super) fn load(text: &str, environment: &[(&str, &str)]) -> Result<Settings, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Settings::load(Some(file.path()), environment).map_err(|error| error.to_string())
    }

    #[test]
    fn every_setting_has_documentation() {
        for (table, values) in defaults() {
            let (_, doc, keys) = documented().find(|(name, ..)| *name == table).unwrap();
            assert!(!doc.is_empty(), "{table}");
            for (key, _) in values.as_table().unwrap() {
                let (_, doc) =
                    keys.iter().find(|(name, _)| name == key).unwrap_or_else(|| panic!("{table}.{key}"));
                assert!(!doc.is_empty(), "{table}.{key}");
            }
        }
    }

    #[test]
    fn environment_overrides_the_file_and_the_file_the_default() {
        let settings =
            load("[segmenter]\npart_ms = 400\nsegment_ms = 1600\n", &[("SHOAL_SEGMENTER_PART_MS", "200")])
                .unwrap();
        assert_eq!(settings.segmenter.part_ms, 200);
        assert_eq!(settings.segmenter.segment_ms, 1600);
        assert_eq!(settings.http, Http::default());
    }

    #[test]
    fn streams_to_pull_are_tables_whose_secrets_are_not_shown() {
        let text = "[[pull.streams]]\nname = \"news\"\nurl = \"https://a.example/x.m3u8?token=hidden\"\n\
            headers = [\"Authorization: Bearer hidden\"]\nhosts = [\"cdn.example\"]\n";
        let settings = load(text, &[]).unwrap();
        settings.validate().unwrap();
        assert_eq!(settings.pull.streams[0].hosts, ["cdn.example"]);
        assert!(!format!("{settings:?}").contains("hidden"));
        let error =
            load(&text.replace("https:", "gopher:"), &[]).unwrap().validate().unwrap_err().to_string();
        assert!(error.contains("pull.streams: the URL of news") && !error.contains("hidden"), "{error}");
    }

    #[test]
    fn misspelt_key_is_refused_with_its_line_in_one_line() {
        let error = load("[http]\nlisten = \"127.0.0.1:1\"\nlitsen = 3\n", &[]).unwrap_err();
        assert!(error.contains(":3: unknown field `litsen`"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }

    #[test]
    fn misspelt_table_and_wrong_type_are_refused() {
        assert!(load("[htp]\n", &[]).unwrap_err().contains("unknown field `htp`"));
        assert!(load("[segmenter]\npart_ms = \"fast\"\n", &[]).unwrap_err().contains(":2: "));
        assert!(load("not toml", &[]).unwrap_err().contains(":1: "));
    }

    #[test]
    fn variable_of_the_wrong_kind_is_named() {
        let error = load("", &[("SHOAL_SEGMENTER_PART_MS", "fast")]).unwrap_err();
        assert!(error.contains("SHOAL_SEGMENTER_PART_MS") && error.contains("whole number"), "{error}");
    }

    #[test]
    fn variable_whose_value_cannot_be_is_named() {
        for (name, text) in [
            ("SHOAL_INGEST_MEDIA_ADDRESS", "8189"),
            ("SHOAL_INGEST_AUTH_OPEN_TO", "friends"),
            ("SHOAL_INGEST_SESSIONS_MAX", "-1"),
            ("SHOAL_SEGMENTER_LADDER", "480,tall"),
            ("SHOAL_TRACKER_PEER_POLICY", "maybe"),
        ] {
            let error = load("", &[(name, text)]).unwrap_err();
            assert!(error.contains(&format!("{name}: ")), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn lists_of_tables_are_for_the_file_and_all_other_lists_for_variables_too() {
        for (name, (table, key, default)) in variables() {
            if !matches!(default, Some(toml::Value::Array(_))) {
                continue;
            }
            // An item that every list of texts takes.
            let loaded = load("", &[(&name, "480")]);
            if FILE_ONLY.contains(&format!("{table}.{key}").as_str()) {
                let error = loaded.unwrap_err();
                assert!(
                    error.contains(&format!("{name}: ")) && error.contains("in the file only"),
                    "{error}"
                );
            } else {
                assert_eq!(loaded.err(), None, "{name}");
            }
        }
        assert!(FILE_ONLY.iter().all(|setting| Settings::default_file().contains(setting)));
    }

    /// What the documentation of a key says is allowed: the smallest and the largest value, where these are numbers.
    fn allowed(doc: &[&str]) -> Option<(Option<i64>, Option<i64>)> {
        let doc = doc.concat();
        let (_, range) = doc.split_once("Allowed: ")?;
        let range = range.split(['.', ';', ',']).next()?;
        let (low, high) = range.split_once(" to ").unwrap_or((range, ""));
        let number = |text: &str| text.split(' ').next().and_then(|number| number.parse().ok());
        Some((number(low), number(high)))
    }

    /// Numbers whose documentation names no range: those of which any is allowed, and the ports, which bound each other.
    const BOUNDLESS: &[&str] = &[
        "ingest.frames_out_of_order_max",
        "segmenter.grace_ms",
        "segmenter.ended_keep_ms",
        "segmenter.settle_ms",
        "segmenter.storage_free_bytes_min",
        "segmenter.recordings_keep_hours",
        "segmenter.recordings_bytes_max",
        "tracker.introductions_burst",
        "tracker.introductions_per_hour",
        "tracker.turn_port_min",
        "tracker.turn_port_max",
    ];

    #[test]
    fn allowed_values_are_those_that_the_documentation_names() {
        let (mut checked, defaults) = (0, defaults());
        for (table, _, keys) in documented() {
            for (key, doc) in *keys {
                let is_number = defaults[*table].get(*key).is_some_and(toml::Value::is_integer);
                let is_boundless = BOUNDLESS.contains(&format!("{table}.{key}").as_str());
                assert!(
                    !is_number || is_boundless != allowed(doc).is_some(),
                    "{table}.{key}: its documentation has to say what is allowed, or it has to be in BOUNDLESS"
                );
                let Some((low, high)) = allowed(doc) else { continue };
                for value in [low.map(|low| low - 1), high.map(|high| high + 1)].into_iter().flatten() {
                    // A number below zero can't be read at all.
                    let text = format!("[{table}]\n{key} = {value}\n");
                    let outcome = load(&text, &[]).map(|settings| settings.validate());
                    if let Ok(validated) = outcome {
                        let error = validated.expect_err(&text).to_string();
                        assert!(error.contains(&format!("{key} = {value}")), "{error}");
                    }
                }
                for value in [low, high].into_iter().flatten() {
                    let text = format!("[{table}]\n{key} = {value}\n");
                    // Another key may have to be changed with it.
                    if let Err(error) = load(&text, &[]).unwrap().validate() {
                        assert!(!error.to_string().contains(&format!("{key} = {value}")), "{error}");
                    }
                    checked += 1;
                }
            }
        }
        assert!(checked > 40, "{checked}");
    }

    #[test]
    fn unknown_variable_of_a_table_is_noticed_and_others_are_not_ours() {
        let names = ["SHOAL_SEGMENTER_PART_MS", "SHOAL_SEGMENTER_PRAT_MS", "SHOAL_CHROMIUM", "PATH"];
        assert_eq!(unknown_variables(names), ["SHOAL_SEGMENTER_PRAT_MS"]);
    }

    #[test]
    fn recordings_in_a_store_need_a_key_that_stays() {
        let mut settings = Settings::default();
        settings.segmenter.storage = "s3://bucket/live".to_owned();
        settings.validate().unwrap();
        settings.segmenter.recording = true;
        let error = settings.validate().unwrap_err().to_string();
        assert!(error.contains("keys.signing_key_file"), "{error}");
        settings.keys.signing_key_file = "key".to_owned();
        settings.validate().unwrap();
        // A directory belongs to one process, whatever its key.
        settings.keys.signing_key_file.clear();
        settings.segmenter.storage = "directory".to_owned();
        settings.validate().unwrap();
    }

    #[test]
    fn one_secret_for_viewers_and_publishers_needs_an_audience() {
        let [one, other] = ["a secret of thirty-two characters", "another one that is as long as that"];
        // Secret and audience of viewers' tokens, then of publishers'.
        let validate = |viewers: [&str; 2], publishers: [&str; 2]| {
            let [[viewers, watch], [publishers, publish]] = [viewers, publishers];
            let text = format!(
                "[tracker]\nviewer_token_secret = \"{viewers}\"\nviewer_token_audience = \"{watch}\"\n\
                 [ingest]\njwt_hs256_secret = \"{publishers}\"\njwt_audience = \"{publish}\"\n"
            );
            load(&text, &[]).unwrap().validate().map_err(|error| error.to_string())
        };
        let named = ["ingest.jwt_hs256_secret", "tracker.viewer_token_secret", "ingest.jwt_audience"];
        for (watch, publish) in [("", ""), ("watch", ""), ("shoal", "shoal")] {
            let error = validate([one, watch], [one, publish]).unwrap_err();
            assert!(named.iter().all(|key| error.contains(key)), "{error}");
            let names_both = error.contains("tracker.viewer_token_audience");
            assert_eq!(names_both, !publish.is_empty(), "{error}");
            assert!(!error.contains(one) && error.lines().count() == 1, "{error}");
        }
        for (watch, publish) in [("", "publish"), ("watch", "publish")] {
            assert_eq!(validate([one, watch], [one, publish]), Ok(()), "{watch}|{publish}");
        }
        for [viewers, publishers] in [[one, other], [one, ""], ["", one], ["", ""]] {
            for audience in ["", "shoal"] {
                assert_eq!(
                    validate([viewers, audience], [publishers, audience]),
                    Ok(()),
                    "{viewers}|{publishers}"
                );
            }
        }
    }

    #[test]
    fn defaults_are_valid_and_values_out_of_range_are_named() {
        Settings::default().validate().unwrap();
        let mut settings = Settings::default();
        settings.segmenter.part_ms = 5;
        let error = settings.validate().unwrap_err().to_string();
        assert!(error.contains("segmenter.part_ms = 5: "), "{error}");
    }
}
