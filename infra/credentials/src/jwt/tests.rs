//! The rules that all tokens share. What their claims permit is tested in `tracker` and `ingest`.

use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::{Value, json};

use super::*;

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const HS256: &str = r#"{"alg":"HS256"}"#;
const EDDSA: &str = r#"{"alg":"EdDSA"}"#;
const NOW_S: u64 = 1_800_000_000;
const TOKEN_BYTES_MAX: usize = 1_000;

fn signing_key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn public_key() -> String {
    STANDARD.encode(signing_key().verifying_key().as_bytes())
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Takes tokens of both kinds.
fn verifier(audience: &str) -> Verifier {
    let verifier = Verifier::new(audience, TOKEN_BYTES_MAX);
    verifier.with_hs256_secret(&SECRET.into()).unwrap().with_eddsa_public_key(&public_key()).unwrap()
}

fn sign(header: &str, claims: &str, make: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(make(signed.as_bytes()));
    format!("{signed}.{signature}")
}

fn hmac(secret: &[u8], signed: &[u8]) -> Vec<u8> {
    let mut hmac = Hmac::<Sha256>::new_from_slice(secret).unwrap();
    hmac.update(signed);
    hmac.finalize().into_bytes().to_vec()
}

fn hs256(header: &str, claims: &str) -> String {
    sign(header, claims, |signed| hmac(SECRET.as_bytes(), signed))
}

fn eddsa(header: &str, claims: &str) -> String {
    sign(header, claims, |signed| signing_key().sign(signed).to_bytes().to_vec())
}

fn is_good(verifier: &Verifier, token: &str) -> bool {
    verifier.verify::<Value>(token, at(NOW_S)).is_some()
}

/// Whether these claims pass, for any audience.
fn are_good(claims: &str) -> bool {
    is_good(&verifier(""), &hs256(HS256, claims))
}

fn good_claims() -> String {
    format!(r#"{{"exp":{}}}"#, NOW_S + 60)
}

/// RFC 7515, appendix A.1.
#[test]
fn the_hs256_example_of_the_rfc_verifies_until_it_ends() {
    const EXP: u64 = 1_300_819_380;
    let key = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
    let secret = URL_SAFE_NO_PAD.decode(key).unwrap();
    // The key is no text, as our settings are.
    let verifier = Verifier { hs256_secret: Some(secret.into()), ..Verifier::new("", TOKEN_BYTES_MAX) };
    let token = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6\
                 Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    let verified = verifier.verify::<Value>(token, at(EXP - 1)).unwrap();
    assert_eq!(verified.claims, json!({ "iss": "joe", "exp": EXP, "http://example.com/is_root": true }));
    assert_eq!(verified.good_until, at(EXP + 10));
    assert_eq!(verifier.verify::<Value>(token, at(EXP + 10)), None);
}

/// RFC 8037, appendix A.4, with the key of A.2. What is signed there is no JSON.
#[test]
fn the_eddsa_example_of_the_rfc_verifies() {
    let key = URL_SAFE_NO_PAD.decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo").unwrap();
    let verifier = Verifier::new("", TOKEN_BYTES_MAX).with_eddsa_public_key(&STANDARD.encode(key)).unwrap();
    let token = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.\
                 hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    assert_eq!(verifier.payload(token).unwrap(), b"Example of Ed25519 signing");
    assert_eq!(verifier.payload(&token.replace("RXhhbXBs", "RXhhbXBt")), None);
    assert_eq!(verifier.verify::<Value>(token, at(0)), None, "it holds no claims");
}

#[test]
fn claims_come_back_as_the_callers_type_or_not_at_all() {
    #[derive(Debug, PartialEq, Deserialize)]
    struct Claims {
        stream: String,
    }
    let verify = |claims: &str| verifier("").verify::<Claims>(&hs256(HS256, claims), at(NOW_S));
    let verified = verify(r#"{"stream":"cam","exp":1800000060.25,"other":[1]}"#).unwrap();
    assert_eq!(verified.claims, Claims { stream: "cam".into() });
    assert_eq!(verified.good_until, UNIX_EPOCH + Duration::from_millis(1_800_000_070_250));
    for bad in [r#"{"exp":1800000060}"#, r#"{"exp":1800000060,"stream":5}"#, "[1800000060]", "{", ""] {
        assert_eq!(verify(bad), None, "{bad}");
    }
}

#[test]
fn forged_tokens_are_refused() {
    let verifier = verifier("");
    let claims = good_claims();
    assert!(is_good(&verifier, &hs256(HS256, &claims)) && is_good(&verifier, &eddsa(EDDSA, &claims)));
    let other_key = SigningKey::from_bytes(&[8; 32]);
    for (what, token) in [
        (
            "another secret's",
            sign(HS256, &claims, |signed| hmac(b"0123456789abcdef0123456789abcdeX", signed)),
        ),
        ("another key's", sign(EDDSA, &claims, |signed| other_key.sign(signed).to_bytes().to_vec())),
        ("half a hash", sign(HS256, &claims, |signed| hmac(SECRET.as_bytes(), signed)[..16].to_vec())),
        ("an empty secret's", sign(HS256, &claims, |signed| hmac(b"", signed))),
        ("unsigned", sign(r#"{"alg":"none"}"#, &claims, |_| Vec::new())),
        ("unsigned HS256", sign(HS256, &claims, |_| Vec::new())),
        ("unsigned EdDSA", sign(EDDSA, &claims, |_| Vec::new())),
        ("another algorithm's", hs256(r#"{"alg":"HS512"}"#, &claims)),
        ("an algorithm in small letters", hs256(r#"{"alg":"hs256"}"#, &claims)),
        ("of two algorithms", hs256(r#"{"alg":"HS256","alg":"HS256"}"#, &claims)),
        ("without an algorithm", hs256(r#"{"typ":"JWT"}"#, &claims)),
        ("signed by the secret as EdDSA", hs256(EDDSA, &claims)),
        ("signed by the key as HS256", eddsa(HS256, &claims)),
    ] {
        assert!(!is_good(&verifier, &token), "{what}");
    }
}

#[test]
fn the_public_key_is_no_secret() {
    let key = signing_key().verifying_key().to_bytes();
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", pem_body());
    for text in [public_key(), pem] {
        let verifier = Verifier::new("", TOKEN_BYTES_MAX).with_eddsa_public_key(&text).unwrap();
        assert!(is_good(&verifier, &eddsa(EDDSA, &good_claims())));
        for secret in [&key[..], text.as_bytes(), text.trim().as_bytes(), b""] {
            let forged = sign(HS256, &good_claims(), |signed| hmac(secret, signed));
            assert!(!is_good(&verifier, &forged), "{secret:?}");
        }
    }
}

/// The key with the twelve bytes that RFC 8410 puts before it.
fn pem_body() -> String {
    let mut bytes = vec![0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    bytes.extend(signing_key().verifying_key().to_bytes());
    STANDARD.encode(bytes)
}

#[test]
fn a_token_is_checked_by_keys_that_are_set_only() {
    let claims = good_claims();
    let tokens = [hs256(HS256, &claims), eddsa(EDDSA, &claims)];
    let are_good = |verifier: Verifier| tokens.each_ref().map(|token| is_good(&verifier, token));
    let new = || Verifier::new("", TOKEN_BYTES_MAX);
    assert_eq!(are_good(new()), [false, false]);
    assert_eq!(are_good(new().with_hs256_secret(&SECRET.into()).unwrap()), [true, false]);
    assert_eq!(are_good(new().with_eddsa_public_key(&public_key()).unwrap()), [false, true]);
    // Settings that are empty are no keys: everybody has the empty secret.
    let empty = new().with_hs256_secret(&Secret::default()).unwrap().with_eddsa_public_key("").unwrap();
    assert!(!empty.has_hs256_secret() && !empty.has_eddsa_public_key());
    assert!(!is_good(&empty, &sign(HS256, &claims, |signed| hmac(b"", signed))));
}

#[test]
fn keys_that_cannot_be_used_are_refused() {
    let new = || Verifier::new("", TOKEN_BYTES_MAX);
    assert!(new().with_hs256_secret(&SECRET.into()).unwrap().has_hs256_secret());
    assert_eq!(new().with_hs256_secret(&SECRET[1..].into()).unwrap_err(), KeyError::SecretTooShort);
    for bad in ["x", "c2hvcnQ=", &public_key()[1..]] {
        assert_eq!(new().with_eddsa_public_key(bad).unwrap_err(), KeyError::NoPublicKey, "{bad}");
    }
}

/// With the neutral element as the key, this one signature fits every text, where it is checked less strictly.
#[test]
fn a_signature_that_fits_every_text_is_refused() {
    let mut neutral = [0; 32];
    neutral[0] = 1;
    let mut signature = [0; 64];
    signature[0] = 1;
    let key = VerifyingKey::from_bytes(&neutral).unwrap();
    let lenient = ed25519_dalek::Verifier::verify(&key, b"any text", &Signature::from_bytes(&signature));
    assert!(lenient.is_ok(), "the control");
    let verifier =
        Verifier::new("", TOKEN_BYTES_MAX).with_eddsa_public_key(&STANDARD.encode(neutral)).unwrap();
    assert!(!is_good(&verifier, &sign(EDDSA, &good_claims(), |_| signature.to_vec())));
}

#[test]
fn extensions_that_must_be_understood_are_refused() {
    let verifier = verifier("");
    let claims = good_claims();
    for (alg, make) in [("HS256", hs256 as fn(&str, &str) -> String), ("EdDSA", eddsa)] {
        let others = format!(r#"{{"alg":"{alg}","kid":"1","b64":true}}"#);
        assert!(is_good(&verifier, &make(&others, &claims)), "others are ignored");
        for crit in [r#"["b64"]"#, r#"["exp"]"#, "[]", "null", "false", r#""b64""#] {
            let header = format!(r#"{{"alg":"{alg}","b64":true,"crit":{crit}}}"#);
            assert!(!is_good(&verifier, &make(&header, &claims)), "{header}");
        }
    }
}

#[test]
fn what_is_no_date_is_refused() {
    let exp = NOW_S + 60;
    for good in ["1800000060", "1800000060.5", "1.80000006e9", "253402300799"] {
        assert!(are_good(&format!(r#"{{"exp":{good}}}"#)), "exp {good}");
    }
    for good in ["0", "1799999999.5", "null"] {
        assert!(are_good(&format!(r#"{{"exp":{exp},"nbf":{good}}}"#)), "nbf {good}");
    }
    // Milliseconds, the largest that JSON can say and more than that, texts, nothing.
    let bad = ["1800000060000", "253402300800", "18446744073709551615", "1e308", "1e999", "-1", "-1e308"];
    for bad in bad.into_iter().chain([r#""1800000060""#, "NaN", "Infinity", "null", "true", "[1800000060]"]) {
        assert!(!are_good(&format!(r#"{{"exp":{bad}}}"#)), "exp {bad}");
    }
    for bad in ["1800000000000", "1e308", "1e999", "-1", r#""0""#, "NaN"] {
        assert!(!are_good(&format!(r#"{{"exp":{exp},"nbf":{bad}}}"#)), "nbf {bad}");
    }
    assert!(!are_good(r#"{"nbf":0}"#), "tokens end");
    assert!(!are_good(&format!(r#"{{"exp":{exp},"exp":{exp}}}"#)), "said twice");
}

/// At the very end of dates a date alone can be wrong, and not also be still to come.
#[test]
fn a_beginning_that_is_no_date_is_refused_whatever_the_time() {
    let token = |nbf: &str| hs256(HS256, &format!(r#"{{"exp":253402300799,"nbf":{nbf}}}"#));
    let is_good = |nbf| verifier("").verify::<Value>(&token(nbf), at(253_402_300_799)).is_some();
    assert!(is_good("253402300799") && !is_good("253402300800"));
}

#[test]
fn clocks_may_be_off_by_ten_seconds_and_times_hold_to_the_millisecond() {
    let verifier = verifier("");
    let are_good = |claims: &str, times_ms: [u64; 2]| {
        let token = hs256(HS256, claims);
        let is_good = |ms| verifier.verify::<Value>(&token, UNIX_EPOCH + Duration::from_millis(ms)).is_some();
        times_ms.map(is_good)
    };
    assert_eq!(are_good(r#"{"exp":2000}"#, [2_009_999, 2_010_000]), [true, false]);
    assert_eq!(are_good(r#"{"exp":2000.5}"#, [2_010_499, 2_010_500]), [true, false]);
    assert_eq!(are_good(r#"{"exp":3000,"nbf":2000}"#, [1_989_999, 1_990_000]), [false, true]);
    assert_eq!(are_good(r#"{"exp":3000,"nbf":2000.5}"#, [1_990_499, 1_990_500]), [false, true]);
    // A clock that is behind the Unix epoch is as good as one at its beginning.
    let token = hs256(HS256, r#"{"exp":2000,"nbf":11}"#);
    assert_eq!(verifier.verify::<Value>(&token, UNIX_EPOCH - Duration::from_secs(60)), None);
}

#[test]
fn an_audience_that_is_set_has_to_be_named() {
    let is_good = |wanted: &str, aud: &str| {
        let claims = format!(r#"{{"exp":{}{aud}}}"#, NOW_S + 60);
        is_good(&verifier(wanted), &hs256(HS256, &claims))
    };
    for aud in [r#","aud":"shoal""#, r#","aud":["shoal"]"#, r#","aud":["x","shoal"]"#] {
        assert!(is_good("shoal", aud) && is_good("", aud), "{aud}");
    }
    for aud in
        ["", r#","aud":null"#, r#","aud":"""#, r#","aud":"Shoal""#, r#","aud":"shoal2""#, r#","aud":[]"#]
    {
        assert!(!is_good("shoal", aud), "{aud}");
        assert!(is_good("", aud), "{aud}: any will do, and none");
    }
    for aud in [r#","aud":5"#, r#","aud":{"shoal":"shoal"}"#, r#","aud":["shoal",5]"#] {
        assert!(!is_good("shoal", aud) && !is_good("", aud), "{aud} is no audience");
    }
}

#[test]
fn a_token_that_is_too_long_is_refused_whoever_signed_it() {
    let token =
        |length: usize| hs256(HS256, &format!(r#"{{"exp":{},"x":"{}"}}"#, NOW_S + 60, "x".repeat(length)));
    let longest = (0..TOKEN_BYTES_MAX).rev().map(token).find(|token| token.len() <= TOKEN_BYTES_MAX).unwrap();
    assert!(longest.len() >= TOKEN_BYTES_MAX - 1, "base64 leaves out some lengths");
    assert!(is_good(&verifier(""), &longest));
    let mut shorter = verifier("");
    shorter.token_bytes_max = longest.len() - 1;
    assert!(!is_good(&shorter, &longest));
}

#[test]
fn nothing_is_read_into_what_is_cut_off() {
    let verifier = verifier("");
    for token in [hs256(HS256, &good_claims()), eddsa(EDDSA, &good_claims())] {
        assert!(is_good(&verifier, &token));
        for length in 0..token.len() {
            assert!(!is_good(&verifier, &token[..length]), "{length} bytes");
        }
        for changed in [format!("{token}="), format!("{token}."), format!(".{token}"), format!(" {token}")] {
            assert!(!is_good(&verifier, &changed), "{changed}");
        }
    }
}

#[test]
fn keys_are_not_shown() {
    let text = format!("{:?}", verifier("shoal"));
    assert_eq!(text, r#"Verifier { audience: "shoal", .. }"#);
}
