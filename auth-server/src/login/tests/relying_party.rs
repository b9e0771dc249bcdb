//! The relying party against a provider that misbehaves in one way at a time.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::super::claims::ClaimsError;
use super::super::outbound::OutboundError;
use super::super::provider::{Answered, Asking, Provider, ProviderError};
use super::super::secrets::Secret;
use super::hostile::{Answering, Behaviour, Forgery, Hostile};
use crate::config::{ConnectorConfig, ConnectorKind};
use crate::context::Random;
use crate::store::Identity;

const REDIRECT_URI: &str = "https://iap.localhost/login/callback";
const PATIENCE: Duration = Duration::from_secs(5);

struct Attempt {
    cookie: Secret,
    state: Secret,
    prompt_login: bool,
    acr_values: Vec<String>,
}

impl Attempt {
    fn new() -> Self {
        let random = Random::system();
        Self {
            cookie: Secret::fresh(&random).unwrap(),
            state: Secret::fresh(&random).unwrap(),
            prompt_login: false,
            acr_values: Vec::new(),
        }
    }

    fn asking(&self) -> Asking<'_> {
        Asking {
            redirect_uri: REDIRECT_URI,
            state: &self.state,
            cookie: &self.cookie,
            prompt_login: self.prompt_login,
            acr_values: self.acr_values.clone(),
        }
    }

    async fn redeem(
        &self,
        provider: &Provider,
        code: &str,
        issuer: Option<&str>,
    ) -> Result<Identity, ProviderError> {
        let now = OffsetDateTime::now_utc();
        let answered = Answered {
            code,
            issuer,
            started_at: now,
        };
        let identified = provider.identify(&self.asking(), &answered, now).await;
        identified.map(|identified| identified.identity)
    }
}

async fn log_in_with(
    provider: &Provider,
    hostile: &Hostile,
    attempt: &Attempt,
) -> Result<Identity, ProviderError> {
    let url = provider.authorization_url(&attempt.asking()).await?;
    let code = hostile.sign_in(url.as_str());
    attempt.redeem(provider, &code, None).await
}

async fn log_in(behaviour: Behaviour) -> Result<Identity, ProviderError> {
    let hostile = Hostile::start(behaviour).await;
    let provider = Provider::with_time(hostile.connector(), PATIENCE);
    log_in_with(&provider, &hostile, &Attempt::new()).await
}

fn outbound(result: Result<Identity, ProviderError>) -> Arc<OutboundError> {
    match result {
        Err(ProviderError::Outbound(error)) => error,
        other => panic!("not an outbound error: {other:?}"),
    }
}

fn refused_token(result: Result<Identity, ProviderError>) -> String {
    match result {
        Err(ProviderError::Token(why)) => why,
        other => panic!("the token was not refused: {other:?}"),
    }
}

fn with_claims(claims: &[(&'static str, Value)]) -> Behaviour {
    Behaviour {
        claims: claims.to_vec(),
        ..Behaviour::default()
    }
}

fn with_forgery(forgery: Forgery) -> Behaviour {
    Behaviour {
        forgery,
        ..Behaviour::default()
    }
}

#[tokio::test]
async fn an_honest_provider_vouches() {
    let identity = log_in(Behaviour::default()).await.unwrap();
    assert_eq!(identity.name, "alice@example.com");
    assert_eq!(identity.subject, "s1");
    assert_eq!(identity.groups[0].to_string(), "hostile:engineering");
}

#[tokio::test]
async fn each_kind_of_provider_is_asked_for_a_refresh_token_in_its_own_way() {
    let hostile = Hostile::start(Behaviour::default()).await;
    let offline = ["openid", "offline_access"].map(str::to_owned).to_vec();
    for (kind, scopes, asked) in [
        (ConnectorKind::Oidc, vec!["openid".to_owned()], [false, false]),
        (ConnectorKind::Oidc, offline.clone(), [true, false]),
        (ConnectorKind::Okta, offline, [false, false]),
        (ConnectorKind::Google, vec!["openid".to_owned()], [true, true]),
    ] {
        let connector = ConnectorConfig {
            kind,
            scopes,
            ..hostile.connector()
        };
        let provider = Provider::with_time(connector, PATIENCE);
        let url = provider
            .authorization_url(&Attempt::new().asking())
            .await
            .unwrap();
        let query = url.query().unwrap();
        let seen = ["prompt=consent", "access_type=offline"].map(|pair| query.contains(pair));
        assert_eq!(seen, asked, "{kind:?}: {query}");
    }
}

#[tokio::test]
async fn a_discovery_document_of_another_issuer_is_refused() {
    let metadata = vec![("issuer", json!("https://sso.example.com"))];
    let refused = log_in(Behaviour {
        metadata,
        ..Behaviour::default()
    })
    .await;
    assert!(
        matches!(refused, Err(ProviderError::WrongIssuer { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_token_of_another_issuer_is_refused() {
    let why = refused_token(log_in(with_claims(&[("iss", json!("https://sso.example.com"))])).await);
    assert!(why.contains("issuer"), "{why}");
}

#[tokio::test]
async fn a_token_without_signature_is_refused() {
    refused_token(log_in(with_forgery(Forgery::Unsigned)).await);
}

#[tokio::test]
async fn a_token_keyed_with_the_public_key_is_refused() {
    refused_token(log_in(with_forgery(Forgery::HmacWithPublicKey)).await);
}

#[tokio::test]
async fn a_token_keyed_with_the_client_secret_is_refused() {
    refused_token(log_in(with_forgery(Forgery::HmacWithClientSecret)).await);
}

#[tokio::test]
async fn a_strangers_signature_is_refused() {
    refused_token(log_in(with_forgery(Forgery::StrangersKey)).await);
}

#[tokio::test]
async fn a_token_for_another_login_is_refused() {
    let why = refused_token(log_in(with_claims(&[("nonce", json!("another"))])).await);
    assert!(why.contains("nonce"), "{why}");
    refused_token(log_in(with_claims(&[("nonce", Value::Null)])).await);
}

#[tokio::test]
async fn a_token_for_another_client_is_refused() {
    refused_token(log_in(with_claims(&[("aud", json!("another"))])).await);
    refused_token(log_in(with_claims(&[("aud", json!(["iap", "another"]))])).await);
    refused_token(log_in(with_claims(&[("azp", json!("another"))])).await);
}

#[tokio::test]
async fn an_expired_or_future_token_is_refused() {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    refused_token(log_in(with_claims(&[("exp", json!(now - 1))])).await);
    refused_token(
        log_in(with_claims(&[
            ("iat", json!(now + 3600)),
            ("exp", json!(now + 7200)),
        ]))
        .await,
    );
}

#[tokio::test]
async fn a_person_who_was_to_sign_in_anew_and_did_not_is_refused() {
    let hour_ago = OffsetDateTime::now_utc().unix_timestamp() - 3600;
    let hostile = Hostile::start(with_claims(&[("auth_time", json!(hour_ago))])).await;
    let provider = Provider::with_time(hostile.connector(), PATIENCE);
    let anew = Attempt {
        prompt_login: true,
        ..Attempt::new()
    };
    let url = provider.authorization_url(&anew.asking()).await.unwrap();
    assert!(url.query().unwrap().contains("prompt=login"));
    assert!(url.query().unwrap().contains("max_age=0"));
    refused_token(log_in_with(&provider, &hostile, &anew).await);
    log_in_with(&provider, &hostile, &Attempt::new()).await.unwrap();
}

#[tokio::test]
async fn a_provider_that_does_not_tell_when_somebody_signed_in_proves_nothing_recent_unless_it_was_prompted()
{
    let untold = with_claims(&[("auth_time", Value::Null), ("amr", json!(["mfa"]))]);
    let hostile = Hostile::start(untold).await;
    let provider = Provider::with_time(hostile.connector(), PATIENCE);
    let now = OffsetDateTime::now_utc();
    let standing = Attempt::new();
    let url = provider.authorization_url(&standing.asking()).await.unwrap();
    assert!(url.query().unwrap().contains("max_age=31536000"), "{url}");
    let identity = log_in_with(&provider, &hostile, &standing).await.unwrap();
    assert!(
        identity.auth_time <= now - time::Duration::hours(23),
        "{identity:?}"
    );
    assert_eq!(identity.mfa_time, None);
    let anew = Attempt {
        prompt_login: true,
        ..Attempt::new()
    };
    let identity = log_in_with(&provider, &hostile, &anew).await.unwrap();
    assert!(identity.auth_time >= now, "{identity:?}");
    assert_eq!(identity.mfa_time, Some(identity.auth_time));
}

#[tokio::test]
async fn a_new_key_is_fetched_once_in_a_while() {
    let hostile = Hostile::start(Behaviour::default()).await;
    let provider = Provider::with_time(hostile.connector(), PATIENCE);
    log_in_with(&provider, &hostile, &Attempt::new()).await.unwrap();
    assert_eq!((hostile.discoveries(), hostile.key_fetches()), (1, 1));
    let keys = Answering::With(hostile.rotated_keys());
    hostile.behave(Behaviour {
        forgery: Forgery::OtherKeyId,
        keys,
        ..Behaviour::default()
    });
    log_in_with(&provider, &hostile, &Attempt::new()).await.unwrap();
    assert_eq!(hostile.key_fetches(), 2);
    hostile.behave(Behaviour::default());
    for _ in 0..3 {
        refused_token(log_in_with(&provider, &hostile, &Attempt::new()).await);
    }
    assert_eq!(
        (hostile.discoveries(), hostile.key_fetches()),
        (1, 2),
        "unknown keys do not make us ask again"
    );
}

#[tokio::test]
async fn a_code_works_once_and_only_with_its_verifier() {
    let hostile = Hostile::start(Behaviour::default()).await;
    let provider = Provider::with_time(hostile.connector(), PATIENCE);
    let attempt = Attempt::new();
    let url = provider.authorization_url(&attempt.asking()).await.unwrap();
    let code = hostile.sign_in(url.as_str());
    attempt.redeem(&provider, &code, None).await.unwrap();
    let replayed = attempt.redeem(&provider, &code, None).await;
    assert!(
        matches!(replayed, Err(ProviderError::Refused { .. })),
        "{replayed:?}"
    );
    let stolen = hostile.sign_in(url.as_str());
    let elsewhere = Attempt::new().redeem(&provider, &stolen, None).await;
    assert!(
        matches!(elsewhere, Err(ProviderError::Refused { .. })),
        "{elsewhere:?}"
    );
}

#[tokio::test]
async fn an_answer_that_names_another_issuer_is_not_taken() {
    let hostile = Hostile::start(Behaviour::default()).await;
    let provider = Provider::with_time(hostile.connector(), PATIENCE);
    let attempt = Attempt::new();
    let url = provider.authorization_url(&attempt.asking()).await.unwrap();
    let code = hostile.sign_in(url.as_str());
    let mixed_up = attempt
        .redeem(&provider, &code, Some("https://sso.example.com"))
        .await;
    assert!(matches!(mixed_up, Err(ProviderError::MixedUp)));
    attempt
        .redeem(&provider, &code, Some(hostile.issuer()))
        .await
        .unwrap();
}

#[tokio::test]
async fn an_answer_that_should_name_its_issuer_and_does_not_is_not_taken() {
    let metadata = vec![("authorization_response_iss_parameter_supported", json!(true))];
    let refused = log_in(Behaviour {
        metadata,
        ..Behaviour::default()
    })
    .await;
    assert!(matches!(refused, Err(ProviderError::MixedUp)), "{refused:?}");
}

#[tokio::test]
async fn ten_megabytes_are_not_read() {
    let discovery = log_in(Behaviour {
        discovery: Answering::Hugely,
        ..Behaviour::default()
    })
    .await;
    assert!(matches!(*outbound(discovery), OutboundError::TooLarge { .. }));
    let keys = log_in(Behaviour {
        keys: Answering::Hugely,
        ..Behaviour::default()
    })
    .await;
    assert!(matches!(*outbound(keys), OutboundError::TooLarge { .. }));
    let token = log_in(Behaviour {
        token: Answering::Hugely,
        ..Behaviour::default()
    })
    .await;
    assert!(matches!(*outbound(token), OutboundError::TooLarge { .. }));
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let hostile = Hostile::start(Behaviour::default()).await;
    for target in [
        format!("{}/trap", hostile.issuer()),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
    ] {
        let discovery = Answering::WithRedirect(target);
        hostile.behave(Behaviour {
            discovery,
            ..Behaviour::default()
        });
        let provider = Provider::with_time(hostile.connector(), PATIENCE);
        let refused = log_in_with(&provider, &hostile, &Attempt::new()).await;
        assert!(matches!(*outbound(refused), OutboundError::Redirected { .. }));
    }
    assert_eq!(hostile.trapped(), 0);
}

#[tokio::test]
async fn endpoints_at_private_addresses_are_not_asked() {
    for endpoint in ["token_endpoint", "jwks_uri", "userinfo_endpoint"] {
        for address in [
            "https://169.254.169.254/x",
            "https://10.0.0.1/x",
            "https://[fd00:ec2::254]/x",
        ] {
            let metadata = vec![(endpoint, json!(address))];
            let refused = log_in(Behaviour {
                metadata,
                ..Behaviour::default()
            })
            .await;
            assert!(
                matches!(*outbound(refused), OutboundError::Forbidden { .. }),
                "{endpoint} {address}"
            );
        }
        let metadata = vec![(endpoint, json!("http://sso.example.com/x"))];
        let refused = log_in(Behaviour {
            metadata,
            ..Behaviour::default()
        })
        .await;
        assert!(
            matches!(*outbound(refused), OutboundError::NotHttps(_)),
            "{endpoint}"
        );
    }
}

#[tokio::test]
async fn a_name_that_resolves_to_loopback_is_not_asked_in_production() {
    let hostile = Hostile::start(Behaviour::default()).await;
    let issuer = hostile.issuer().replace("http://127.0.0.1", "https://localhost");
    let connector = ConnectorConfig {
        issuer,
        ..hostile.connector()
    };
    let provider = Provider::new(connector, Default::default(), false).unwrap();
    let refused = log_in_with(&provider, &hostile, &Attempt::new()).await;
    assert!(matches!(*outbound(refused), OutboundError::Forbidden { .. }));
}

#[tokio::test]
async fn a_slow_provider_is_given_up() {
    let hostile = Hostile::start(Behaviour {
        discovery: Answering::Never,
        ..Behaviour::default()
    })
    .await;
    let provider = Provider::with_time(hostile.connector(), Duration::from_millis(50));
    let refused = outbound(log_in_with(&provider, &hostile, &Attempt::new()).await);
    assert!(matches!(*refused, OutboundError::TimedOut { .. }), "{refused}");
}

#[tokio::test]
async fn a_failed_provider_is_not_asked_by_everybody_at_once() {
    let hostile = Hostile::start(Behaviour {
        discovery: Answering::With(json!({})),
        ..Behaviour::default()
    })
    .await;
    let provider = Provider::with_time(hostile.connector(), PATIENCE);
    for _ in 0..3 {
        let refused = outbound(log_in_with(&provider, &hostile, &Attempt::new()).await);
        assert!(matches!(*refused, OutboundError::Unreadable { .. }), "{refused}");
    }
    assert_eq!(hostile.discoveries(), 1);
}

#[tokio::test]
async fn a_provider_that_is_down_is_named_so() {
    let hostile = Hostile::start(Behaviour::default()).await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let issuer = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let connector = ConnectorConfig {
        issuer,
        ..hostile.connector()
    };
    let provider = Provider::with_time(connector, PATIENCE);
    let error = log_in_with(&provider, &hostile, &Attempt::new())
        .await
        .unwrap_err();
    assert_eq!(
        (error.reason(), error.for_person().as_str()),
        ("provider_unreachable", "it cannot be reached")
    );
}

#[tokio::test]
async fn a_missing_groups_claim_refuses_and_names_the_setting() {
    let behaviour = Behaviour {
        user_info: Some(json!({"sub": "s1"})),
        ..with_claims(&[("groups", Value::Null)])
    };
    let error = log_in(behaviour).await.unwrap_err();
    assert!(
        matches!(&error, ProviderError::Claims(ClaimsError::NoGroupsClaim { .. })),
        "{error}"
    );
    assert!(error.for_person().contains("groups_claim"), "{error}");
}

#[tokio::test]
async fn groups_may_come_from_userinfo_of_the_same_subject_only() {
    let with_info = |subject: &str| Behaviour {
        user_info: Some(json!({"sub": subject, "groups": ["told"]})),
        ..with_claims(&[("groups", Value::Null)])
    };
    assert_eq!(
        log_in(with_info("s1")).await.unwrap().groups[0].to_string(),
        "hostile:told"
    );
    assert!(matches!(
        log_in(with_info("s2")).await,
        Err(ProviderError::OtherSubject)
    ));
}

#[tokio::test]
async fn an_unverified_email_is_not_the_name() {
    let identity = log_in(with_claims(&[("email_verified", json!(false))]))
        .await
        .unwrap();
    assert_eq!((identity.name.as_str(), identity.email), ("alice", None));
}

#[tokio::test]
async fn a_refusal_is_quoted_without_control_characters() {
    let error = super::super::provider::refusal_error("access_denied\n", Some("no\u{1b}[31m"));
    assert_eq!(
        error.to_string(),
        "the identity provider answered `access_denied`: no[31m"
    );
}

#[tokio::test]
async fn a_class_that_is_asked_for_is_in_the_request_in_the_providers_way() {
    let hostile = Hostile::start(Behaviour::default()).await;
    let attempt = Attempt {
        acr_values: vec!["gold".to_owned(), "silver".to_owned()],
        ..Attempt::new()
    };
    let asked = async |kind| {
        let connector = ConnectorConfig {
            kind,
            ..hostile.connector()
        };
        let provider = Provider::with_time(connector, PATIENCE);
        let url = provider.authorization_url(&attempt.asking()).await.unwrap();
        let find = |name: &str| {
            url.query_pairs()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.into_owned())
        };
        (find("acr_values"), find("claims"))
    };
    let (classes, claims) = asked(ConnectorKind::Oidc).await;
    assert_eq!((classes.as_deref(), claims), (Some("gold silver"), None));
    let (classes, claims) = asked(ConnectorKind::Entra).await;
    let claims: Value = serde_json::from_str(&claims.unwrap()).unwrap();
    assert_eq!(classes, None);
    assert_eq!(
        claims,
        json!({"id_token": {"acrs": {"essential": true, "value": "gold"}}})
    );
}
