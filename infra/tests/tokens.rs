//! Viewer tokens as an operator uses them: `shoal watch --token-file`, left running beside a tracker that wants tokens.

mod support;

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac as _};
use serde_json::json;
use sha2::Sha256;
use support::{Running, Serving, shoal, until};

const SECRET: &str = "a secret of the broadcaster's back end";

/// Puts a token into the file that ends in so many seconds: a JWT, as a broadcaster's back end signs it.
fn write_token(file: &Path, seconds: u64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let [head, claims] =
        [json!({ "alg": "HS256", "typ": "JWT" }), json!({ "stream": "show", "exp": now + seconds })]
            .map(|part| BASE64_URL_SAFE_NO_PAD.encode(part.to_string()));
    let signed = format!("{head}.{claims}");
    let mut hmac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("of any length");
    hmac.update(signed.as_bytes());
    let token = format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(hmac.finalize().into_bytes()));
    // With the newline that editors and `echo` leave.
    std::fs::write(file, format!("{token}\n")).expect("the folder is writable");
}

#[test]
fn helper_that_is_left_running_takes_its_renewed_token_from_the_file() {
    let mut serve = shoal();
    serve.env("SHOAL_TRACKER_VIEWER_TOKEN_SECRET", SECRET).env("SHOAL_TRACKER_TOKENS_REQUIRED", "true");
    let serving = Serving::start(&mut serve);
    let _publisher = serving.publish("show", &[]);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    write_token(&file, 4);
    let mut watch = shoal();
    watch.args(["watch", &serving.url("/watch/show"), "--seed", "--token-file"]).arg(&file);
    let mut helper = Running::start(&mut watch);

    let viewers = || serving.metric("tracker_viewers", "");
    let ended = || serving.metric("tracker_tokens_refused_total", "");
    until("the helper", || (viewers() == 1.0).then_some(()));
    // Nobody renews it in time: the helper is put out, and tries again with what the file has.
    until("the end of the token", || (viewers() == 0.0).then_some(()));
    until("a refusal", || (ended() > 0.0).then_some(()));
    write_token(&file, 60);
    until("the helper with its new token", || (viewers() == 1.0).then_some(()));
    assert!(!helper.has_ended());
}
