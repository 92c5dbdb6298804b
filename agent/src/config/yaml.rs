//! In: YAML text and the raw form it should have; out: values as written with their places, or a problem with its place.
//! One strict parser and one kind of error for every file of ours. Knows no keys.

use serde::de::DeserializeOwned;
use serde_saphyr::{DuplicateKeyPolicy, Error as YamlError, Location, MergeKeyPolicy, Spanned};

use super::values::{did_you_mean, shown};

/// What is wrong, and where.
pub(crate) struct ConfigProblem {
    /// From 1; 0 if unknown.
    pub line: u64,
    /// In characters, from 1; 0 if unknown.
    pub column: u64,
    /// What is wrong and what to do.
    pub message: String,
}

/// A value as it is written, with its place.
pub(crate) type Scalar = Spanned<String>;

/// Reads one document.
pub(crate) fn read<T: DeserializeOwned>(text: &str) -> Result<T, ConfigProblem> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Error,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| of_yaml(&error))
}

/// A problem at a place.
pub(crate) fn at(location: Location, message: String) -> ConfigProblem {
    ConfigProblem { line: location.line(), column: location.column(), message }
}

/// Sets a value that is given; returns where.
pub(crate) fn set<T>(
    target: &mut T,
    raw: Option<Scalar>,
    key: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<Location>, ConfigProblem> {
    let Some(raw) = raw else { return Ok(None) };
    *target = parse(&raw.value).map_err(|message| at(raw.referenced, format!("{key}: {message}")))?;
    Ok(Some(raw.referenced))
}

fn of_yaml(error: &YamlError) -> ConfigProblem {
    let error = error.without_snippet();
    let message = match error {
        YamlError::SerdeUnknownField { field, expected, .. } => {
            let hint = did_you_mean(field, expected);
            let hint = if hint.is_empty() { format!(", use one of {}", expected.join(", ")) } else { hint };
            format!("unknown key `{}`{hint}", shown(field))
        }
        YamlError::DuplicateMappingKey { key: Some(key), .. } => {
            format!("the key `{}` appears twice: remove one", shown(key))
        }
        YamlError::Unexpected { expected: "string scalar", .. } => "expected a single value here".into(),
        YamlError::Unexpected { expected: "mapping start", .. } => "expected `key: value` lines here".into(),
        YamlError::Unexpected { expected: "sequence start", .. } => {
            "expected a list here: write `- item` lines or `[item, item]`".into()
        }
        YamlError::NullIntoString { .. } => "expected a value here, found nothing".into(),
        YamlError::MultipleDocuments { .. } => "a second YAML document begins here: keep one".into(),
        YamlError::MergeKeyNotAllowed { .. } => {
            "merge keys (`<<`) are not supported: write the keys out".into()
        }
        other => {
            let text = other.to_string();
            let text = text.split(" at line ").next().unwrap_or_default();
            let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
            format!("broken YAML: {text}: see `kernmeter config default` for the form")
        }
    };
    at(error.location().unwrap_or(Location::UNKNOWN), message)
}
