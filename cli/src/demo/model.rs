//! The scripted answers for the two API sessions of the demo.

use std::time::Duration;

use kage_scripted::{Fault, Matcher, Script, ScriptedServer, Turn};
use serde_json::json;

/// Solves the task in a few steps.
pub(super) const SOLVER: &str = "claude-sonnet-5-5";
/// Gets a rate limit first, then solves the task with a larger change.
pub(super) const LIMITED: &str = "claude-opus-5-5";

/// The time of a scripted answer, so that a person can watch.
const THINKING: Duration = Duration::from_millis(400);

const CHECKED: &str = r#"# Prices of a shop, in cents. Sourced by the till and by test.sh.

# number VALUE: fails when it is not a whole number.
number() {
    case $1 in
    '' | *[!0-9]*)
        echo "not a number: $1" >&2
        return 1
        ;;
    esac
}

# total QUANTITY PRICE: what so many pieces cost.
total() {
    number "$1" && number "$2" || return 1
    echo $(($1 * $2))
}

# discount AMOUNT PERCENT: what is left to pay.
discount() {
    number "$1" && number "$2" || return 1
    echo $(($1 - $1 * $2 / 100))
}
"#;

/// Starts the server with both scripts.
pub(super) async fn start() -> std::io::Result<ScriptedServer> {
    let read = || Turn::call("read_file", json!({ "path": "price.sh" })).delayed(THINKING);
    let test = || Turn::call("bash", json!({ "command": "sh test.sh" })).delayed(THINKING);
    let solver = Script::new(
        "solver",
        Matcher::model(SOLVER),
        [
            read(),
            Turn::call(
                "edit_file",
                json!({ "path": "price.sh", "old": "echo $(($1 + $2))", "new": "echo $(($1 * $2))" }),
            )
            .delayed(THINKING),
            test(),
            Turn::say("total now multiplies quantity and price; the tests pass.").delayed(THINKING),
        ],
    );
    let limited = Script::new(
        "limited",
        Matcher::model(LIMITED),
        [
            read().after(Fault::rate_limited(Duration::from_secs(1))),
            Turn::call("write_file", json!({ "path": "price.sh", "content": CHECKED })).delayed(THINKING),
            test(),
            Turn::say("total multiplies now, and both functions check their arguments.").delayed(THINKING),
        ],
    );
    ScriptedServer::start(vec![solver, limited]).await
}
