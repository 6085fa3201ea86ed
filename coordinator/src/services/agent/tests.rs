//! The messages of a control session.

use kage_core::access::{Capabilities, LetIn};
use kage_core::task::Labels;
use kage_proto::PROTOCOL;

use super::*;

#[test]
fn labels_are_given_not_claimed() {
    let all = |pairs: &[(&str, &str)]| -> Labels {
        let pairs = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        pairs.collect()
    };
    let joined = Principal::Agent {
        id: AgentId::from_random(1),
        project: Default::default(),
        labels: all(&[("gpu", "true")]),
        can: Capabilities::RUN,
    };
    let said = all(&[("gpu", "false"), ("trusted", "true"), ("os", "linux")]);
    assert_eq!(labels(&joined, said.clone()), all(&[("gpu", "true"), ("os", "linux")]));
    assert_eq!(labels(&Principal::Owner, said.clone()), said);
}

#[test]
fn what_an_agent_may_do_follows_from_what_it_shows() {
    let joined = |can| Principal::Agent {
        id: AgentId::from_random(1),
        project: Default::default(),
        labels: Default::default(),
        can,
    };
    let own = Principal::OwnAgent {
        id: AgentId::from_random(1),
    };
    let cases = [
        (joined(Capabilities::RUN), LetIn::Certificate, Capabilities::RUN),
        (joined(Capabilities::ALL), LetIn::Certificate, Capabilities::ALL),
        (own, LetIn::SameProcess, Capabilities::ALL),
        (Principal::Owner, LetIn::OwnersToken, Capabilities::RUN),
        (Principal::Stranger, LetIn::OwnersToken, Capabilities::NONE),
    ];
    for (caller, by, can) in cases {
        let admitted = admittance(&caller, Capabilities::RUN);
        assert_eq!((admitted.by, admitted.can), (by, can), "{caller:?}");
    }
}

#[test]
fn the_newest_common_protocol_is_agreed() {
    let hello = |protocols| Hello {
        agent: AgentId::from_random(1),
        boot: BootId::from_random(1),
        protocols,
        name: "a".to_owned(),
        slots: 1,
        labels: Default::default(),
        adapters: Vec::new(),
        running: Vec::new(),
        pid: 1,
        version: String::new(),
        answers_pings: false,
        machine: None,
        contained: kage_core::contain::Containment::NOTHING,
        context_deltas: 1,
    };
    let agreed = |protocols| agreed_protocol(&hello(protocols)).ok();
    assert_eq!(agreed(1..=1), Some(1));
    assert_eq!(agreed(1..=7), Some(PROTOCOL));
    assert_eq!(agreed(0..=0), None);
    assert_eq!(agreed(PROTOCOL + 1..=PROTOCOL + 2), None);
}
