//! Stories about admission: join tokens, joined agents, people's tokens.

use std::time::Duration;

use kage_core::access::{Capabilities, JoinRefusal, Role};
use kage_core::id::{Digest, ProjectId, TokenId};
use kage_core::task::Labels;
use kage_core::time::Timestamp;

use super::fixture::{agent_id, at, request};
use crate::store::{
    CreateJoinToken, CreatePersonToken, EnrolAgent, Enrolled, Enrolment, RevokeAgent, RevokeJoinToken,
    RevokePersonToken, Store, StoreError,
};

const TEN_MINUTES: u64 = 10 * 60 * 1000;

fn secret(n: u128) -> Digest {
    Digest::of(format!("secret {n}").as_bytes())
}

fn create(n: u128, now: u64) -> CreateJoinToken {
    CreateJoinToken {
        request: request(n),
        id: TokenId::from_random(n),
        secret: secret(n),
        project: ProjectId::default(),
        labels: Labels::from([("gpu".to_owned(), "true".to_owned())]),
        can: Capabilities::RUN,
        uses: 1,
        expires_at: at(now + TEN_MINUTES),
        now: at(now),
    }
}

/// Agent `n` with key `n` shows token 1.
fn enrol(n: u128, now: u64) -> EnrolAgent {
    EnrolAgent {
        token: TokenId::from_random(1),
        secret: secret(1),
        project: None,
        key: Digest::of(&n.to_be_bytes()),
        agent: agent_id(n),
        now: at(now),
    }
}

fn joined(n: u128, enrolled_at: Timestamp) -> Enrolment {
    Enrolment {
        agent: agent_id(n),
        project: ProjectId::default(),
        labels: Labels::from([("gpu".to_owned(), "true".to_owned())]),
        can: Capabilities::RUN,
        enrolled_at,
        revoked_at: None,
    }
}

pub(super) async fn a_join_token_lets_one_agent_in_in_time(store: Store) {
    let (id, row) = store.apply(create(1, 0)).await.unwrap();
    assert_eq!((id, &row.secret), (TokenId::from_random(1), &secret(1)));
    assert_eq!((row.uses, row.used.len()), (1, 0));
    // The repeated call gets the same reply, whatever fresh id it has.
    let mut again = create(1, 5);
    again.id = TokenId::from_random(99);
    assert_eq!(store.apply(again).await.unwrap().0, id);

    let refusals = [
        (
            EnrolAgent {
                token: TokenId::from_random(99),
                ..enrol(1, 1)
            },
            JoinRefusal::Unknown,
        ),
        (
            EnrolAgent {
                secret: secret(2),
                ..enrol(1, 1)
            },
            JoinRefusal::Unknown,
        ),
        (
            EnrolAgent {
                project: Some("other".parse().unwrap()),
                ..enrol(1, 1)
            },
            JoinRefusal::OtherProject,
        ),
        (enrol(1, TEN_MINUTES), JoinRefusal::Expired),
    ];
    for (command, refusal) in refusals {
        assert_eq!(store.apply(command).await.unwrap(), Enrolled::Refused(refusal));
    }
    assert_eq!(store.enrolments().await.unwrap(), []);

    let expected = joined(1, at(TEN_MINUTES - 1));
    let first = store.apply(enrol(1, TEN_MINUTES - 1)).await.unwrap();
    assert_eq!(first, Enrolled::Joined(expected.clone()));
    // A lost answer: the same key, a fresh id that is not used.
    let repeated = EnrolAgent {
        agent: agent_id(7),
        ..enrol(1, TEN_MINUTES - 1)
    };
    assert_eq!(store.apply(repeated).await.unwrap(), Enrolled::Joined(expected.clone()));
    let late = store.apply(enrol(1, TEN_MINUTES)).await.unwrap();
    assert_eq!(late, Enrolled::Refused(JoinRefusal::Expired));
    for now in [TEN_MINUTES - 1, TEN_MINUTES + 1] {
        let other = store.apply(enrol(2, now)).await.unwrap();
        assert_eq!(other, Enrolled::Refused(JoinRefusal::Used));
    }
    assert_eq!(store.enrolments().await.unwrap(), [expected]);

    // Old tokens are forgotten in the end; then they are unknown.
    store.apply(create(2, 8 * 24 * 60 * 60 * 1000)).await.unwrap();
    let forgotten = store.apply(enrol(2, 1)).await.unwrap();
    assert_eq!(forgotten, Enrolled::Refused(JoinRefusal::Unknown));
}

pub(super) async fn a_join_token_lets_as_many_agents_in_as_it_is_good_for(store: Store) {
    let token = CreateJoinToken {
        uses: 2,
        can: Capabilities::ALL,
        ..create(1, 0)
    };
    store.apply(token).await.unwrap();
    // All at once, each twice: whoever comes first gets the places.
    let racing = (1..=5).flat_map(|n| [store.apply(enrol(n, 1)), store.apply(enrol(n, 1))]);
    let mut joined = std::collections::BTreeSet::new();
    let mut refused = 0;
    for outcome in futures_util::future::join_all(racing).await {
        match outcome.unwrap() {
            Enrolled::Joined(enrolment) => {
                assert_eq!(enrolment.can, Capabilities::ALL);
                joined.insert(enrolment.agent);
            }
            Enrolled::Refused(JoinRefusal::Used) => refused += 1,
            Enrolled::Refused(refusal) => panic!("{refusal:?}"),
        }
    }
    assert_eq!((joined.len(), refused), (2, 6));
    let enrolled = store.enrolments().await.unwrap();
    assert_eq!(
        enrolled
            .iter()
            .map(|one| one.agent)
            .collect::<std::collections::BTreeSet<_>>(),
        joined
    );
}

pub(super) async fn nobody_joins_with_a_token_that_was_taken_back(store: Store) {
    let token = CreateJoinToken {
        uses: 9,
        ..create(1, 0)
    };
    store.apply(token).await.unwrap();
    let Enrolled::Joined(first) = store.apply(enrol(1, 1)).await.unwrap() else {
        panic!("it joins");
    };
    let revoke = |n: u128, token, now| RevokeJoinToken {
        request: request(n),
        id: TokenId::from_random(token),
        now: at(now),
    };
    assert!(matches!(
        store.apply(revoke(10, 2, 1)).await,
        Err(StoreError::NotFound { .. })
    ));
    for now in [2, 3] {
        assert_eq!(store.apply(revoke(11, 1, now)).await.unwrap().expires_at, at(2));
    }
    let late = store.apply(enrol(2, 3)).await.unwrap();
    assert_eq!(late, Enrolled::Refused(JoinRefusal::Expired));
    assert_eq!(store.enrolments().await.unwrap(), [first]);
}

/// Agent 1 joins.
pub(super) async fn enrol_first(store: &Store) {
    store.apply(create(1, 0)).await.unwrap();
    assert!(matches!(store.apply(enrol(1, 1)).await.unwrap(), Enrolled::Joined(_)));
}

/// Agent 1 is shut out.
pub(super) async fn revoke_first(store: &Store) {
    let revoke = RevokeAgent {
        request: request(900),
        agent: agent_id(1),
        now: at(3),
    };
    store.apply(revoke).await.unwrap();
}

pub(super) async fn a_revoked_agent_stays_out(store: Store) {
    store.apply(create(1, 0)).await.unwrap();
    let revoke = |n: u128, agent, now| RevokeAgent {
        request: request(n),
        agent: agent_id(agent),
        now: at(now),
    };
    let unknown = store.apply(revoke(10, 1, 1)).await;
    assert!(matches!(unknown, Err(StoreError::NotFound { .. })), "{unknown:?}");
    assert!(matches!(store.apply(enrol(1, 1)).await.unwrap(), Enrolled::Joined(_)));
    store.apply(revoke(11, 1, 2)).await.unwrap();
    store.apply(revoke(11, 1, 3)).await.unwrap();
    store.apply(revoke(12, 1, 4)).await.unwrap();
    let revoked = Enrolment {
        revoked_at: Some(at(2)),
        ..joined(1, at(1))
    };
    assert_eq!(store.enrolments().await.unwrap(), [revoked]);
    let again = store.apply(enrol(1, 5)).await.unwrap();
    assert_eq!(again, Enrolled::Refused(JoinRefusal::Revoked));
}

pub(super) async fn tokens_of_people_are_kept_until_they_are_taken_back(store: Store) {
    let create = |n: u128, id: u128, role| CreatePersonToken {
        request: request(n),
        id: TokenId::from_random(id),
        hash: secret(id),
        role,
        name: format!("token {id}"),
        project: (id == 2).then(|| "elsewhere".parse().unwrap()),
        now: at(0) + Duration::from_millis(u64::try_from(id).unwrap()),
    };
    let first = store.apply(create(1, 1, Role::Submit)).await.unwrap();
    let again = store.apply(create(1, 9, Role::Submit)).await.unwrap();
    assert_eq!(again, first);
    let second = store.apply(create(2, 2, Role::Admin)).await.unwrap();
    assert_eq!(store.person_tokens().await.unwrap(), [first.clone(), second.clone()]);

    let revoke = |n: u128, id: u128, now| RevokePersonToken {
        request: request(n),
        id: TokenId::from_random(id),
        now: at(now),
    };
    assert!(matches!(
        store.apply(revoke(3, 9, 5)).await,
        Err(StoreError::NotFound { .. })
    ));
    let revoked = store.apply(revoke(4, 1, 6)).await.unwrap();
    assert_eq!(revoked.revoked_at, Some(at(6)));
    for n in [4, 5] {
        assert_eq!(store.apply(revoke(n, 1, 7)).await.unwrap(), revoked);
    }
    assert_eq!(store.person_tokens().await.unwrap(), [revoked, second]);
}
