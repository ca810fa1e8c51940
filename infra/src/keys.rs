//! The key with which the origin signs what viewers verify.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use rand::TryRngCore as _;

use crate::Error;
use crate::settings::Keys;

/// The secret half of an Ed25519 key.
pub(crate) type SecretKey = [u8; 32];

/// Reads the signing key, makes and stores a new one where the file does not exist, or makes one for this run only
/// where no file is named.
///
/// # Errors
/// [`Error::SigningKey`] if the file is there but holds no key, or cannot be written.
pub(crate) fn load(settings: &Keys) -> Result<SecretKey, Error> {
    let file = &settings.signing_key_file;
    if file.is_empty() {
        return Ok(generate());
    }
    let fail = |reason: String| Error::SigningKey { path: file.clone(), reason };
    match fs::read_to_string(file) {
        Ok(text) => {
            let mut key = SecretKey::default();
            hex::decode_to_slice(text.trim(), &mut key)
                .map_err(|_| fail("does not hold 64 hexadecimal digits".to_owned()))?;
            Ok(key)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = generate();
            store(Path::new(file), &hex::encode(key)).map_err(|error| fail(error.to_string()))?;
            Ok(key)
        }
        Err(error) => Err(fail(error.to_string())),
    }
}

fn generate() -> SecretKey {
    let mut key = SecretKey::default();
    rand::rngs::OsRng.try_fill_bytes(&mut key).expect("the system gives random bytes");
    key
}

/// Writes a new file that only its owner may read.
pub(crate) fn store(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    // Whoever reads the signing key can make viewers play anything.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    writeln!(file, "{text}")?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_folder(name: &str) -> (tempfile::TempDir, Keys) {
        let folder = tempfile::tempdir().unwrap();
        let signing_key_file = folder.path().join(name).to_string_lossy().into_owned();
        (folder, Keys { signing_key_file })
    }

    #[test]
    fn key_is_made_once_and_kept_private() {
        let (_folder, settings) = in_folder("data/key");
        let key = load(&settings).unwrap();
        assert_eq!(load(&settings).unwrap(), key);
        #[cfg(unix)]
        {
            let mode =
                std::os::unix::fs::MetadataExt::mode(&fs::metadata(&settings.signing_key_file).unwrap());
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn damaged_key_is_an_error_and_is_not_overwritten() {
        let (_folder, settings) = in_folder("key");
        fs::write(&settings.signing_key_file, "abc").unwrap();
        assert!(load(&settings).unwrap_err().to_string().contains("64 hexadecimal digits"));
        assert_eq!(fs::read_to_string(&settings.signing_key_file).unwrap(), "abc");
    }

    #[test]
    fn without_a_file_each_start_has_another_key() {
        assert_ne!(load(&Keys::default()).unwrap(), load(&Keys::default()).unwrap());
    }
}
