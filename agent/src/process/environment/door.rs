//! How programs find the door of their attempt: the variables that tools read for a proxy, and what those
//! need that read none of them.

/// Where no proxy is asked: what listens in the box itself.
const OWN: &str = "localhost,127.0.0.1,::1";

/// The variables that name a proxy.
pub(super) const PROXIES: [&str; 12] = [
    // curl, and so git and cargo, read the name in lower case for http:// and both for https://.
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
    // Before what a person's settings file has.
    "npm_config_proxy",
    "npm_config_https_proxy",
    "YARN_HTTP_PROXY",
    "YARN_HTTPS_PROXY",
    "CARGO_HTTP_PROXY",
    "PIP_PROXY",
];

/// The options of Java's programs: Java reads no variables for a proxy.
const JAVA: [&str; 3] = ["MAVEN_OPTS", "GRADLE_OPTS", "SBT_OPTS"];

/// The variables of programs whose door is at this port of their loopback address. The last part says
/// whether the value is put behind one that is there already.
pub(super) fn variables(port: u16) -> impl Iterator<Item = (&'static str, String, bool)> {
    let door = format!("http://127.0.0.1:{port}");
    let java = format!(
        "-Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort={port} -Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort={port} \
         -Dhttp.nonProxyHosts=localhost|127.*|[::1]"
    );
    let own = ["NO_PROXY", "no_proxy", "npm_config_noproxy"];
    // Node reads the variables from version 24 on, when it is told to.
    let told = [("NODE_USE_ENV_PROXY", "1"), ("ELECTRON_GET_USE_PROXY", "1")];
    let to_door = PROXIES.into_iter().map(move |name| (name, door.clone(), false));
    let own = own.into_iter().map(|name| (name, OWN.to_owned(), false));
    let told = told.into_iter().map(|(name, value)| (name, value.to_owned(), false));
    let java = JAVA.into_iter().map(move |name| (name, java.clone(), true));
    to_door.chain(own).chain(told).chain(java)
}
