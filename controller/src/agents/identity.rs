//! Who calls: the projected token in the call's metadata, reviewed by the API server. The node is the token's claim and nothing else.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::refusal::Refusal;

/// Reviews under way at one time: a thousand agents that come back at once must not become a thousand calls.
const REVIEWS: usize = 16;
/// Longest wait for a turn; an agent that waits longer had better come back later.
const TURN_DEADLINE: Duration = Duration::from_secs(10);
/// Longest wait for an answer.
const REVIEW_DEADLINE: Duration = Duration::from_secs(10);
/// How long an answer counts without asking again; never past the token's end.
const CACHED_FOR: Duration = Duration::from_secs(60);
/// Answers that are kept; beyond it the outdated ones go first, then all.
const CACHED: usize = 16 * 1024;
/// No token of Kubernetes comes near.
const LONGEST_TOKEN: usize = 16 * 1024;

/// A confirmed agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Node name, by the token's claim.
    pub node: String,
    /// Node UID, by the token's claim.
    pub node_uid: String,
    /// Pod name.
    pub pod: String,
    /// Pod UID.
    pub pod_uid: String,
    /// End of the token.
    pub expires: Timestamp,
}

/// What a token must be.
#[derive(Debug, Clone)]
pub struct Expected {
    /// Audience that it was made for.
    pub audience: String,
    /// `system:serviceaccount:<namespace>:<name>`.
    pub username: String,
}

impl Expected {
    /// A token of the ServiceAccount, for us.
    pub fn agents(namespace: &str, service_account: &str) -> Self {
        Self {
            audience: berth_proto::TOKEN_AUDIENCE.into(),
            username: format!("system:serviceaccount:{namespace}:{service_account}"),
        }
    }
}

/// Whoever can say whether a token is good.
pub trait Reviewer: Send + Sync + 'static {
    /// The API server's verdict, or why there is none.
    fn review<'a>(&'a self, token: &'a str, audience: &'a str) -> BoxFuture<'a, Result<TokenReviewStatus, String>>;
}

/// The real one: `authentication.k8s.io/v1` TokenReview.
pub struct ApiReviewer(Api<TokenReview>);

impl ApiReviewer {
    /// Asks through `client`.
    pub fn new(client: Client) -> Self {
        Self(Api::all(client))
    }
}

impl Reviewer for ApiReviewer {
    fn review<'a>(&'a self, token: &'a str, audience: &'a str) -> BoxFuture<'a, Result<TokenReviewStatus, String>> {
        Box::pin(async move {
            let spec = TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![audience.to_owned()]),
            };
            let review = TokenReview {
                spec,
                ..TokenReview::default()
            };
            let answer = self
                .0
                .create(&PostParams::default(), &review)
                .await
                .map_err(|e| e.to_string())?;
            answer.status.ok_or_else(|| "the review has no status".to_owned())
        })
    }
}

/// Turns tokens into identities.
pub struct Identifier {
    reviewer: Arc<dyn Reviewer>,
    expected: Expected,
    turns: Semaphore,
    cache: Mutex<HashMap<[u8; 32], (Identity, Instant)>>,
    /// UIDs of pods that spoke to us and are gone, with the moment: the API server itself accepts a token for some seconds after its
    /// pod was deleted.
    gone: Mutex<HashMap<String, Instant>>,
}

impl Identifier {
    /// Tokens as `expected`, reviewed by `reviewer`.
    pub fn new(reviewer: Arc<dyn Reviewer>, expected: Expected) -> Self {
        Self {
            reviewer,
            expected,
            turns: Semaphore::new(REVIEWS),
            cache: Mutex::default(),
            gone: Mutex::default(),
        }
    }

    /// The agent whose token it is.
    pub async fn identify(&self, token: &str) -> Result<Identity, Refusal> {
        if token.len() > LONGEST_TOKEN {
            return Err(Refusal::TokenTooLong { bytes: token.len() });
        }
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(identity) = self.cached(&hash) {
            return Ok(identity);
        }
        let turn = tokio::time::timeout(TURN_DEADLINE, self.turns.acquire()).await;
        let Ok(Ok(_turn)) = turn else {
            return Err(Refusal::Overloaded);
        };
        let review = self.reviewer.review(token, &self.expected.audience);
        let answer = tokio::time::timeout(REVIEW_DEADLINE, review).await;
        let status = answer
            .unwrap_or_else(|_| Err(format!("no answer within {REVIEW_DEADLINE:?}")))
            .map_err(|problem| Refusal::ReviewUnavailable { problem })?;
        let identity = judge(status, Claims::of(token).as_ref(), &self.expected, Timestamp::now())?;
        if self.gone.lock().contains_key(&identity.pod_uid) {
            return Err(Refusal::PodGone);
        }
        self.remember(hash, identity.clone());
        Ok(identity)
    }

    /// Tokens of these pods are no longer good, whatever the API server still says of them.
    pub fn pods_gone(&self, uids: &BTreeSet<String>) {
        let mut gone = self.gone.lock();
        gone.retain(|_, since| since.elapsed() < CACHED_FOR);
        let known = |identity: &Identity| uids.contains(&identity.pod_uid);
        self.cache.lock().retain(|_, (identity, _)| {
            if known(identity) {
                gone.insert(identity.pod_uid.clone(), Instant::now());
            }
            !known(identity)
        });
    }

    fn cached(&self, hash: &[u8; 32]) -> Option<Identity> {
        let cache = self.cache.lock();
        let (identity, asked) = cache.get(hash)?;
        (asked.elapsed() < CACHED_FOR && identity.expires > Timestamp::now()).then(|| identity.clone())
    }

    fn remember(&self, hash: [u8; 32], identity: Identity) {
        let mut cache = self.cache.lock();
        if cache.len() >= CACHED {
            cache.retain(|_, (_, asked)| asked.elapsed() < CACHED_FOR);
        }
        if cache.len() >= CACHED {
            cache.clear();
        }
        cache.insert(hash, (identity, Instant::now()));
    }
}

/// The token of an `authorization` value.
pub fn bearer(authorization: Option<&str>) -> Result<&str, Refusal> {
    let (scheme, token) = authorization.and_then(|a| a.split_once(' ')).ok_or(Refusal::NoToken)?;
    let token = token.trim();
    match scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() {
        true => Ok(token),
        false => Err(Refusal::NoToken),
    }
}

/// What a token says of itself. Believed only after the API server confirmed the token; before that it helps a log line.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
struct Claims {
    exp: Option<i64>,
    #[serde(default)]
    sub: String,
    #[serde(default)]
    aud: Audiences,
    #[serde(default, rename = "kubernetes.io")]
    kubernetes: KubernetesClaims,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

impl Default for Audiences {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl Audiences {
    fn list(&self) -> Vec<String> {
        match self {
            Self::One(a) => vec![a.clone()],
            Self::Many(all) => all.clone(),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
struct KubernetesClaims {
    pod: Option<NamedClaim>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
struct NamedClaim {
    #[serde(default)]
    name: String,
}

impl Claims {
    /// Of the middle part of a JWT; `None`: it is none.
    fn of(token: &str) -> Option<Self> {
        let payload = token.split('.').nth(1)?;
        let json = base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(payload.trim_end_matches('='))
            .ok()?;
        serde_json::from_slice(&json).ok()
    }

    fn expires(&self) -> Option<Timestamp> {
        Timestamp::from_second(self.exp?).ok()
    }

    /// For a log line; control characters and length of a stranger's text are not passed on.
    fn who(&self) -> String {
        let pod = self.kubernetes.pod.as_ref().map_or("(none)", |p| p.name.as_str());
        format!("{}, pod {}", printable(&self.sub), printable(pod))
    }
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(253).collect()
}

/// The identity behind a review. `claims` are the token's own.
fn judge(
    status: TokenReviewStatus,
    claims: Option<&Claims>,
    expected: &Expected,
    now: Timestamp,
) -> Result<Identity, Refusal> {
    if status.authenticated != Some(true) {
        return Err(not_authenticated(status, claims, expected, now));
    }
    let user = status.user.unwrap_or_default();
    let username = user.username.clone().unwrap_or_default();
    let audiences = status.audiences.unwrap_or_default();
    if !audiences.contains(&expected.audience) {
        // An authenticator that knows no audiences answers with none: the token is not ours to accept.
        return Err(Refusal::WrongAudience {
            audiences,
            wanted: expected.audience.clone(),
            claimed: username,
        });
    }
    let pod = extra(&user, "authentication.kubernetes.io/pod-name");
    if username != expected.username {
        let pod = pod.unwrap_or_else(|| "(none)".into());
        return Err(Refusal::OtherServiceAccount {
            username,
            pod,
            wanted: expected.username.clone(),
        });
    }
    let (Some(pod), Some(pod_uid)) = (pod, extra(&user, "authentication.kubernetes.io/pod-uid")) else {
        return Err(Refusal::NoPodClaim { username });
    };
    let node = extra(&user, "authentication.kubernetes.io/node-name");
    let (Some(node), Some(node_uid)) = (node, extra(&user, "authentication.kubernetes.io/node-uid")) else {
        return Err(Refusal::NoNodeClaim { username, pod });
    };
    let Some(expires) = claims.and_then(Claims::expires) else {
        return Err(Refusal::NoExpiry { username, pod });
    };
    if expires <= now {
        return Err(Refusal::Expired {
            claimed: format!("{username}, pod {pod}"),
        });
    }
    Ok(Identity {
        node,
        node_uid,
        pod,
        pod_uid,
        expires,
    })
}

/// The API server says only "no" and a sentence; the token's own words make it the right kind of no.
fn not_authenticated(
    status: TokenReviewStatus,
    claims: Option<&Claims>,
    expected: &Expected,
    now: Timestamp,
) -> Refusal {
    let error = printable(&status.error.unwrap_or_else(|| "no reason given".into()));
    let Some(claims) = claims else {
        return Refusal::NotAuthenticated {
            error,
            claimed: "nobody".into(),
        };
    };
    let claimed = claims.who();
    let audiences = claims.aud.list();
    if claims.expires().is_some_and(|e| e <= now) {
        Refusal::Expired { claimed }
    } else if !audiences.is_empty() && !audiences.contains(&expected.audience) {
        let audiences = audiences.iter().take(4).map(|a| printable(a)).collect();
        Refusal::WrongAudience {
            audiences,
            wanted: expected.audience.clone(),
            claimed,
        }
    } else {
        Refusal::NotAuthenticated { error, claimed }
    }
}

/// A claim with exactly one value that says something.
fn extra(user: &UserInfo, key: &str) -> Option<String> {
    match user.extra.as_ref()?.get(key)?.as_slice() {
        [one] if !one.is_empty() => Some(one.clone()),
        _ => None,
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::json;

    const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

    fn expected() -> Expected {
        Expected::agents("quay", "berth-agent")
    }

    /// An unsigned token: the fake reviewer does not look at signatures.
    pub fn token(claims: &serde_json::Value) -> String {
        let part = |v: &serde_json::Value| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(v.to_string());
        format!("{}.{}.sig", part(&json!({"alg": "none"})), part(claims))
    }

    fn good() -> serde_json::Value {
        json!({"authenticated": true, "audiences": ["berth-controller"], "user": {
            "username": "system:serviceaccount:quay:berth-agent", "extra": {
                "authentication.kubernetes.io/pod-name": ["agent-x"], "authentication.kubernetes.io/pod-uid": ["pu"],
                "authentication.kubernetes.io/node-name": ["n1"], "authentication.kubernetes.io/node-uid": ["nu"]}}})
    }

    fn changed(change: impl FnOnce(&mut serde_json::Value)) -> serde_json::Value {
        let mut status = good();
        change(&mut status);
        status
    }

    #[test]
    fn verdicts() {
        let exp = NOW.as_second() + 600;
        let aud = json!(["berth-controller"]);
        let extra = |key: &str| format!("/user/extra/authentication.kubernetes.io~1{key}");
        let drop = |key: &str| changed(|s| *s.pointer_mut(&extra(key)).unwrap() = json!([]));
        let cases = [
            ("good", good(), json!({"exp": exp}), "ok"),
            (
                "not authenticated",
                json!({"authenticated": false, "error": "no"}),
                json!({"exp": exp, "aud": aud}),
                "NotAuthenticated",
            ),
            ("nothing at all", json!({}), json!({"exp": exp}), "NotAuthenticated"),
            (
                "expired, says the API server",
                json!({"authenticated": false}),
                json!({"exp": 1, "aud": aud}),
                "Expired",
            ),
            (
                "for another",
                json!({"authenticated": false}),
                json!({"exp": exp, "aud": "https://api"}),
                "WrongAudience",
            ),
            (
                "confirmed for another",
                changed(|s| s["audiences"] = json!(["https://api"])),
                json!({"exp": exp}),
                "WrongAudience",
            ),
            (
                "confirmed for nobody",
                changed(|s| s["audiences"] = json!([])),
                json!({"exp": exp}),
                "WrongAudience",
            ),
            (
                "other name",
                changed(|s| s["user"]["username"] = "system:serviceaccount:quay:default".into()),
                json!({"exp": exp}),
                "OtherServiceAccount",
            ),
            (
                "other namespace",
                changed(|s| s["user"]["username"] = "system:serviceaccount:x:berth-agent".into()),
                json!({"exp": exp}),
                "OtherServiceAccount",
            ),
            ("no pod", drop("pod-name"), json!({"exp": exp}), "NoPodClaim"),
            ("no pod uid", drop("pod-uid"), json!({"exp": exp}), "NoPodClaim"),
            ("no node", drop("node-name"), json!({"exp": exp}), "NoNodeClaim"),
            ("no node uid", drop("node-uid"), json!({"exp": exp}), "NoNodeClaim"),
            (
                "two nodes",
                changed(|s| *s.pointer_mut(&extra("node-name")).unwrap() = json!(["n1", "n2"])),
                json!({"exp": exp}),
                "NoNodeClaim",
            ),
            ("no expiry", good(), json!({}), "NoExpiry"),
            (
                "expired by our clock",
                good(),
                json!({"exp": NOW.as_second()}),
                "Expired",
            ),
        ];
        for (name, status, claims, want) in cases {
            let status = serde_json::from_value(status).unwrap();
            let claims = Claims::of(&token(&claims));
            let got = judge(status, claims.as_ref(), &expected(), NOW);
            assert_eq!(got.as_ref().map_or_else(|r| r.reason(), |_| "ok"), want, "{name}");
            if let Ok(identity) = got {
                assert_eq!((identity.node.as_str(), identity.node_uid.as_str()), ("n1", "nu"));
                assert_eq!(identity.expires.as_second(), exp);
            }
        }
    }

    #[test]
    fn a_node_in_the_token_counts_only_where_the_api_server_confirms_it() {
        let claims = Claims::of(&token(
            &json!({"exp": NOW.as_second() + 9, "kubernetes.io": {"node": {"name": "forged"}}}),
        ));
        let identity = judge(
            serde_json::from_value(good()).unwrap(),
            claims.as_ref(),
            &expected(),
            NOW,
        )
        .unwrap();
        assert_eq!(identity.node, "n1");
    }

    #[test]
    fn authorization_metadata() {
        for (value, want) in [
            (Some("Bearer abc"), Some("abc")),
            (Some("bearer  abc "), Some("abc")),
            (Some("Basic abc"), None),
            (Some("Bearer "), None),
            (Some("abc"), None),
            (None, None),
        ] {
            assert_eq!(bearer(value).ok(), want, "{value:?}");
        }
    }

    #[test]
    fn a_strangers_text_does_not_break_the_log() {
        let claims = Claims::of(&token(&json!({"sub": format!("a\n{}", "b".repeat(9999))}))).unwrap();
        assert!(claims.who().len() < 300 && !claims.who().contains('\n'));
        for garbage in ["", "a", "a.b", "a.!!.c", "....", "a.e30.c"] {
            let _ = Claims::of(garbage);
        }
    }

    struct Counting(std::sync::atomic::AtomicUsize, serde_json::Value);

    impl Reviewer for Counting {
        fn review<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<TokenReviewStatus, String>> {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Box::pin(async { serde_json::from_value(self.1.clone()).map_err(|e| e.to_string()) })
        }
    }

    #[tokio::test]
    async fn a_good_answer_is_remembered_and_a_bad_one_is_not() {
        let exp = Timestamp::now().as_second() + 600;
        for (status, reviews) in [(good(), 1), (json!({"authenticated": false}), 2)] {
            let reviewer = Arc::new(Counting(0.into(), status));
            let identifier = Identifier::new(reviewer.clone(), expected());
            let token = token(&json!({"exp": exp}));
            let _ = identifier.identify(&token).await;
            let _ = identifier.identify(&token).await;
            assert_eq!(reviewer.0.load(std::sync::atomic::Ordering::Relaxed), reviews);
        }
        let reviewer = Arc::new(Counting(0.into(), good()));
        let identifier = Identifier::new(reviewer, expected());
        let token = token(&json!({"exp": exp}));
        assert!(identifier.identify(&token).await.is_ok());
        identifier.pods_gone(&["another".to_owned(), "pu".to_owned()].into());
        assert_eq!(
            identifier.identify(&token).await,
            Err(Refusal::PodGone),
            "although the reviewer still accepts it"
        );
        let long = identifier.identify(&"x".repeat(20_000)).await;
        assert_eq!(long, Err(Refusal::TokenTooLong { bytes: 20_000 }));
    }
}
