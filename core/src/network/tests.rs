use std::net::IpAddr;

use super::*;

mod properties;

fn list(rules: &[&str]) -> AllowList {
    rules.iter().map(|rule| rule.parse::<AllowRule>().unwrap()).collect()
}

fn to(text: &str) -> Destination {
    Destination::parse(text, None).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The decision about a host that resolves to these addresses, in a word.
fn decided(rules: &[&str], asked: &str, resolved: &[&str]) -> String {
    let asked = match Destination::parse(asked, None) {
        Ok(asked) => asked,
        Err(invalid) => return format!("invalid: {invalid}"),
    };
    let resolved: Vec<_> = match asked.known_addresses() {
        Some(known) => known,
        None => resolved.iter().map(|address| ip(address)).collect(),
    };
    match decide(NetworkPolicy::Gateway, &list(rules), &asked, &resolved) {
        Ok(addresses) => addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        Err(Refused::NoNetwork(_)) => "no network".to_owned(),
        Err(Refused::NotListed(_)) => "not listed".to_owned(),
        Err(Refused::OtherPort(_)) => "other port".to_owned(),
        Err(Refused::Address { kind, .. }) => kind.as_str().to_owned(),
    }
}

const PUBLIC: &str = "93.184.215.14";

#[test]
fn a_host_is_on_the_list_by_its_name_and_port() {
    let rules = [
        "example.com",
        "*.example.org",
        "packages.corp:8443",
        "[2606:2800::1]:8080",
    ];
    for (asked, said) in [
        ("example.com:443", PUBLIC),
        ("example.com:80", PUBLIC),
        ("EXAMPLE.Com:443", PUBLIC),
        ("example.com.:443", PUBLIC),
        ("example.com:8443", "other port"),
        ("www.example.com:443", "not listed"),
        ("notexample.com:443", "not listed"),
        ("example.com.evil.net:443", "not listed"),
        ("a.example.org:443", PUBLIC),
        ("a.b.example.org:443", PUBLIC),
        ("example.org:443", "not listed"),
        ("evilexample.org:443", "not listed"),
        ("packages.corp:8443", PUBLIC),
        ("packages.corp:443", "other port"),
        ("[2606:2800::1]:8080", "2606:2800::1"),
        ("[2606:2800:0:0::0001]:8080", "2606:2800::1"),
        ("[2606:2800::1]:443", "other port"),
        ("[2606:2800::2]:8080", "not listed"),
    ] {
        assert_eq!(decided(&rules, asked, &[PUBLIC]), said, "{asked}");
    }
}

/// What a program, or a page that it read, could write to get where it must not.
#[test]
fn tricks_with_names_and_numbers_lead_nowhere() {
    let rules = ["example.com", "*.example.com", "b\u{fc}cher.example"];
    for (asked, said) in [
        // The machine, its neighbours, and clouds' metadata, as numbers that systems read as addresses.
        ("127.0.0.1:80", "not listed"),
        ("127.1:80", "not listed"),
        ("2130706433:80", "not listed"),
        ("0x7f000001:80", "not listed"),
        ("0x7f.1:80", "not listed"),
        ("0177.0.0.1:80", "not listed"),
        ("0:80", "not listed"),
        ("0.0.0.0:80", "not listed"),
        ("169.254.169.254:80", "not listed"),
        ("2852039166:80", "not listed"),
        ("0xa9fea9fe:80", "not listed"),
        ("127.0.0.1.:80", "not listed"),
        ("[::1]:8080", "not listed"),
        ("[::ffff:127.0.0.1]:80", "not listed"),
        ("[::ffff:7f00:1]:80", "not listed"),
        ("[fe80::1]:80", "not listed"),
        ("localhost:80", "not listed"),
        ("LOCALHOST.:80", "not listed"),
        ("\u{ff11}\u{ff12}\u{ff17}.0.0.1:80", "not listed"),
        ("127\u{3002}0\u{3002}0\u{3002}1:80", "not listed"),
        // An address must be named as one.
        ("93.184.215.14:443", "not listed"),
        // Other spellings of a host that is listed.
        ("example\u{3002}com:443", PUBLIC),
        ("xn--bcher-kva.example:443", PUBLIC),
        ("B\u{dc}CHER.example:443", PUBLIC),
        // Look-alikes: a Cyrillic letter.
        ("ex\u{430}mple.com:443", "not listed"),
    ] {
        assert_eq!(decided(&rules, asked, &[PUBLIC]), said, "{asked}");
    }
    for asked in [
        "example.com@evil.net:443",
        "evil.net#example.com:443",
        "evil.net?example.com:443",
        "evil.net/.example.com:443",
        "evil.net\\.example.com:443",
        "ex%61mple.com:443",
        "example.com%00.evil.net:443",
        "evil.net%2f.example.com:443",
        "example.com\0.evil.net:443",
        "example.com\n:443",
        " example.com:443",
        "example.com\t:443",
        "*.example.com:443",
        "example.com..:443",
        ".example.com:443",
        "a..example.com:443",
        ":443",
        "[::1:443",
        "::1:443",
        "[::1%25eth0]:443",
        "[fe80::1%eth0]:443",
        "1.2.3.4.5:443",
        "256.0.0.1:443",
        "09.0.0.1:443",
        "example.com",
        "example.com:",
        "example.com:0",
        "example.com:65536",
        "example.com:+443",
        "example.com: 443",
        "example.com:443:443",
        "example.com:0x1bb",
        "example.com:000443",
        "xn--a.example.com:443",
    ] {
        let said = decided(&rules, asked, &[PUBLIC]);
        assert!(said.starts_with("invalid: "), "{asked:?}: {said}");
    }
    assert!(Destination::parse(&format!("{}:443", "a.".repeat(200)), None).is_err());
    assert!(Destination::parse(&format!("{}.com:443", "a".repeat(64)), None).is_err());
}

#[test]
fn a_listed_name_leads_to_public_addresses_only() {
    for (resolved, said) in [
        (&[PUBLIC, "10.0.0.1"][..], PUBLIC),
        (&["127.0.0.1"], "loopback"),
        (&["127.255.3.9"], "loopback"),
        (&["0.0.0.0"], "unspecified"),
        (&["0.1.2.3"], "unspecified"),
        (&["169.254.169.254"], "link_local"),
        (&["10.1.2.3"], "private"),
        (&["172.31.0.1"], "private"),
        (&["172.32.0.1"], "172.32.0.1"),
        (&["192.168.1.1"], "private"),
        (&["100.64.0.1"], "shared"),
        (&["100.128.0.1"], "100.128.0.1"),
        (&["224.0.0.251"], "multicast"),
        (&["255.255.255.255"], "reserved"),
        (&["198.18.0.1"], "reserved"),
        (&["192.0.0.8"], "reserved"),
        (&["::"], "unspecified"),
        (&["::1"], "loopback"),
        (&["::ffff:169.254.169.254"], "link_local"),
        (&["::ffff:93.184.215.14"], PUBLIC),
        (&["::127.0.0.1"], "loopback"),
        (&["::ffff:0:127.0.0.1"], "loopback"),
        (&["64:ff9b::169.254.169.254"], "link_local"),
        (&["64:ff9b::10.0.0.1"], "private"),
        (&["64:ff9b::93.184.215.14"], "64:ff9b::5db8:d70e"),
        (&["64:ff9b:1::1"], "private"),
        (&["2002:7f00:1::"], "loopback"),
        (&["2002:a9fe:a9fe::1"], "link_local"),
        (&["2001:0:4136:e378:8000:63bf:80ff:fffe"], "loopback"),
        (&["2606:2800::5efe:10.0.0.1"], "private"),
        (&["fe80::1"], "link_local"),
        (&["febf::1"], "link_local"),
        (&["fec0::1"], "private"),
        (&["fd00:ec2::254"], "private"),
        (&["fc00::1"], "private"),
        (&["ff02::1"], "multicast"),
        (&["2001:db8::1"], "reserved"),
        (&["100::1"], "reserved"),
        (&["2606:2800:220:1::1"], "2606:2800:220:1::1"),
    ] {
        assert_eq!(
            decided(&["example.com"], "example.com:443", resolved),
            said,
            "{resolved:?}"
        );
    }
}

#[test]
fn what_is_named_exactly_may_be_where_it_is() {
    let corp = ["packages.corp:8443", "10.0.0.0/8"];
    assert_eq!(decided(&corp, "packages.corp:8443", &["10.1.2.3"]), "10.1.2.3");
    assert_eq!(decided(&corp, "packages.corp:8443", &["192.168.1.1"]), "private");
    assert_eq!(decided(&corp, "10.1.2.3:443", &[]), "10.1.2.3");
    assert_eq!(decided(&corp, "10.1.2.3:8443", &[]), "other port");
    assert_eq!(decided(&corp, "167838211:80", &[]), "10.1.2.3");
    assert_eq!(decided(&["a.corp", "::1"], "a.corp:443", &["::1"]), "::1");

    let own = ["localhost:5432", "*.example.com:5432", "example.com"];
    assert_eq!(decided(&own, "localhost:5432", &[]), "127.0.0.1 ::1");
    assert_eq!(decided(&own, "localhost:5433", &[]), "other port");
    assert_eq!(decided(&own, "127.0.0.1:5432", &[]), "not listed");
    let else_where = decided(&own, "a.example.com:5432", &["127.0.0.1"]);
    assert_eq!(else_where, "loopback", "only who asks for localhost gets its port");
    assert_eq!(
        decided(&["*.localhost", "localhost"], "a.localhost:80", &["127.0.0.1"]),
        "loopback"
    );

    let ports: Vec<_> = list(&[
        "localhost:5432",
        "127.0.0.1:6379",
        "[::1]:8080",
        "localhost",
        "example.com:1",
        "127.0.0.0/8",
    ])
    .forwards()
    .into_iter()
    .collect();
    assert_eq!(ports, [5432, 6379, 8080]);
}

#[test]
fn the_address_of_a_provider_is_what_its_owner_set() {
    let rule = |text| AllowRule::of_provider(to(text));
    let list: AllowList = [rule("llm.corp:8000"), rule("127.0.0.1:9000")].into_iter().collect();
    let (corp, own) = (to("llm.corp:8000"), to("127.0.0.1:9000"));
    let private = [ip("10.0.0.1")];
    assert_eq!(
        decide(NetworkPolicy::Gateway, &list, &corp, &private),
        Ok(private.to_vec())
    );
    let own_address = own.known_addresses().unwrap();
    assert_eq!(
        decide(NetworkPolicy::Gateway, &list, &own, &own_address),
        Ok(own_address.clone())
    );
    assert_eq!(list.forwards().into_iter().collect::<Vec<_>>(), [9000]);
    assert!(list.named(&to("127.0.0.1:80")).is_err());
    assert!(list.named(&to("llm.corp:443")).is_err());
}

#[test]
fn many_ports_of_the_machine_do_not_push_out_that_of_a_provider() {
    let own: Vec<AllowRule> = (0..40)
        .map(|port| format!("localhost:{}", 2000 + port).parse().unwrap())
        .collect();
    let list: AllowList = own
        .into_iter()
        .chain([AllowRule::of_provider(to("127.0.0.1:54321"))])
        .collect();
    let ports = list.forwards();
    assert_eq!(ports.len(), MOST_FORWARDS);
    assert!(ports.contains(&54321) && ports.contains(&2000), "{ports:?}");
    assert!(!ports.contains(&2039), "{ports:?}");
}

#[test]
fn policies_none_and_open_ask_no_list() {
    let (nothing, there) = (AllowList::default(), [ip("10.0.0.1")]);
    let asked = to("example.com:1");
    let none = decide(NetworkPolicy::None, &list(&["example.com:1"]), &asked, &there);
    assert_eq!(none, Err(Refused::NoNetwork(asked.clone())));
    assert_eq!(
        decide(NetworkPolicy::Open, &nothing, &asked, &there),
        Ok(there.to_vec())
    );
}

#[test]
fn entries_are_read_or_refused_with_what_to_write() {
    for text in [
        "example.com",
        "*.example.com",
        "example.com:8443",
        "localhost:5432",
        "10.0.0.5",
        "10.0.0.5:8080",
        "10.0.0.0/8",
        "fd00::/8",
        "2606:2800::1",
        "[2606:2800::1]:8080",
        "my_host.corp",
    ] {
        assert_eq!(text.parse::<AllowRule>().unwrap().to_string(), text);
    }
    let said = |text: &str| crate::cause::chain(&text.parse::<AllowRule>().unwrap_err());
    for (text, expected) in [
        ("https://example.com", "write its host alone"),
        ("example.com/path", "write its host alone"),
        ("*", "the policy \"open\" is for that"),
        ("*:443", "the policy \"open\" is for that"),
        ("a.*.com", "write \"*.example.com\""),
        ("*example.com", "write \"*.example.com\""),
        ("*.10.0.0.1", "a star is not in front"),
        ("0.0.0.0/0", "no range of addresses"),
        ("::/0", "no range of addresses"),
        ("10.0.0.0/33", "no range of addresses"),
        ("10.0.0.0/+8", "no range of addresses"),
        ("10.0.0.0/8:80", "no range of addresses"),
        ("example.com:http", "is no port"),
        ("example.com:0", "is no port"),
        ("me@example.com", "cannot have '@' in it"),
        ("", "no name of a host"),
        ("a..b", "no name of a host"),
        ("localhost:80", "ports from 1024 on can"),
        ("127.0.0.1:19128", "ports from 1024 on can"),
    ] {
        assert!(said(text).contains(expected), "{text}: {}", said(text));
    }
}

#[test]
fn a_refusal_names_the_host_and_what_to_write() {
    let list = list(&["example.com", "packages.corp"]);
    let said = |asked: &str, resolved: &[&str]| {
        let resolved: Vec<_> = resolved.iter().map(|address| ip(address)).collect();
        let refused = decide(NetworkPolicy::Gateway, &list, &to(asked), &resolved).unwrap_err();
        (refused.to_string(), refused)
    };
    for (asked, resolved, entry) in [
        ("registry.example.com:443", &[][..], "registry.example.com"),
        ("registry.example.com:8443", &[], "registry.example.com:8443"),
        ("example.com:8443", &[], "example.com:8443"),
        ("packages.corp:443", &["10.0.0.7"], "10.0.0.7"),
        ("[fd00::1]:443", &[], "[fd00::1]"),
    ] {
        let (text, refused) = said(asked, resolved);
        assert!(text.contains(&format!("[network] allow = [\"{entry}\"]")), "{text}");
        assert!(text.contains(&refused.destination().host.to_string()), "{text}");
        // What it says to write helps.
        let mut rules: Vec<AllowRule> = vec!["example.com".parse().unwrap(), "packages.corp".parse().unwrap()];
        rules.push(entry.parse().unwrap());
        let rules: AllowList = rules.into_iter().collect();
        let resolved: Vec<_> = resolved.iter().map(|address| ip(address)).collect();
        assert!(
            decide(NetworkPolicy::Gateway, &rules, &to(asked), &resolved).is_ok(),
            "{asked}"
        );
    }
}

#[test]
fn the_shipped_registries_are_of_package_managers() {
    let list = NetworkSettings::default().list(&[]);
    for host in [
        "crates.io",
        "static.crates.io",
        "index.crates.io",
        "registry.npmjs.org",
        "registry.yarnpkg.com",
        "pypi.org",
        "files.pythonhosted.org",
        "proxy.golang.org",
        "sum.golang.org",
        "repo.maven.apache.org",
        "repo1.maven.org",
        "plugins.gradle.org",
        "rubygems.org",
        "repo.packagist.org",
        "api.nuget.org",
        "repo.hex.pm",
        "conda.anaconda.org",
        "deb.debian.org",
        "archive.ubuntu.com",
        "de.archive.ubuntu.com",
        "codeload.github.com",
        "release-assets.githubusercontent.com",
    ] {
        assert_eq!(list.named(&to(&format!("{host}:443"))), Ok(()), "{host}");
    }
    assert!(list.forwards().is_empty());
    let names: std::collections::BTreeSet<_> = registries().iter().map(|one| &one.name).collect();
    assert_eq!(names.len(), registries().len());
    assert!(
        registries()
            .iter()
            .all(|one| !one.hosts.is_empty() && !one.says.is_empty())
    );
    let hosts = registries().iter().flat_map(|one| &one.hosts);
    assert!(
        hosts
            .clone()
            .all(|rule| rule.own_port().is_none() && !rule.has_port(8080)),
        "they are names at the ports of the web"
    );

    let without = NetworkSettings {
        registries: false,
        ..NetworkSettings::default()
    };
    assert_eq!(without.list(&[]), AllowList::default());
    let provider = "api.example.com".parse().unwrap();
    assert_eq!(without.list(&[provider]).named(&to("api.example.com:443")), Ok(()));
}

#[test]
fn settings_are_read_with_their_defaults() {
    let read = |text: &str| toml::from_str::<NetworkSettings>(text);
    assert_eq!(read("").unwrap(), NetworkSettings::default());
    let some = read("verify = \"none\"\nallow = [\"localhost:5432\"]").unwrap();
    assert_eq!(
        (some.sessions, some.verify),
        (NetworkPolicy::Gateway, NetworkPolicy::None)
    );
    assert_eq!(some.list(&[]).forwards().len(), 1);
    for wrong in ["sessions = \"some\"", "allow = [\"https://a\"]", "allowed = []"] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}
