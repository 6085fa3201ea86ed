//! A whole system in separate processes: a coordinator, agents, and a client of both.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use kage_proto::client::Client;
use kage_proto::v1;
use rustix::process::Signal;

use crate::process::{Daemon, Launch};
use crate::programs;
use crate::root::Root;
use crate::wait::wait_for;

/// Programs with the arguments of `kage coordinator` and `kage agent run`.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The program and its first arguments.
    pub coordinator: (PathBuf, Vec<OsString>),
    /// The program and its first arguments.
    pub agent: (PathBuf, Vec<OsString>),
}

impl Programs {
    /// The workspace's own, with detailed logs.
    #[must_use]
    pub fn own() -> Self {
        let kage = |first: &[&str]| (programs::kage(), first.iter().map(OsString::from).collect());
        Self {
            // Its agents show the coordinator's own token.
            coordinator: kage(&["-v", "coordinator", "--token-agents", "run,verify"]),
            agent: kage(&["-v", "agent", "run"]),
        }
    }
}

/// A running system. Dropping it kills everything it started.
#[derive(Debug)]
pub struct Cluster {
    programs: Programs,
    // Daemons are dropped, and so killed, before their directory is removed.
    coordinator: Option<Daemon>,
    agents: Vec<Daemon>,
    url: String,
    token: String,
    root: Root,
}

/// The folder of a system to which programs of its sessions may write besides their own.
const OUTSIDE: &str = "outside";

/// [`Cluster::outside`], for an agent that finds itself with the TMPDIR that the system gives its agents.
#[must_use]
pub fn outside_beside(tmp: &Path) -> Vec<PathBuf> {
    tmp.parent().map(|root| root.join(OUTSIDE)).into_iter().collect()
}

/// A process adapter, described only by a manifest, that runs a script.
pub const SHELL: &str = "shell";

const SHELL_MANIFEST: &str = r#"
name = "shell"
command = "sh"
args = ["{manifest_dir}/{model}.sh"]
prompt = { pass = "stdin" }
"#;

#[derive(Debug, Clone, Default)]
pub struct AgentOptions {
    /// Its name for people, and that of its directory.
    pub name: String,
    /// Attempts at once; 0: the default.
    pub slots: u32,
    pub labels: BTreeMap<String, String>,
    /// Additional environment: keys and addresses of model providers.
    pub environment: BTreeMap<String, OsString>,
    /// Manifests of process adapters: file name without `.toml` and content.
    pub manifests: Vec<(String, String)>,
    /// Scripts of the adapter [`SHELL`]: name and content.
    pub scripts: Vec<(String, String)>,
    /// The coordinator's address as this agent sees it; `None`: its real one.
    pub coordinator_url: Option<String>,
}

impl AgentOptions {
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.insert(name.to_owned(), value.into());
        self
    }

    #[must_use]
    pub fn manifest(mut self, name: &str, content: impl Into<String>) -> Self {
        self.manifests.push((name.to_owned(), content.into()));
        self
    }

    /// Adds the adapter [`SHELL`] and a script for it: a session's model names its script.
    #[must_use]
    pub fn script(mut self, name: &str, content: impl Into<String>) -> Self {
        self.scripts.push((name.to_owned(), content.into()));
        self
    }

    /// Points the adapters of Claude at a server.
    #[must_use]
    pub fn anthropic(self, url: &str) -> Self {
        self.env("ANTHROPIC_BASE_URL", url)
            .env("ANTHROPIC_API_KEY", "sk-ant-scripted")
    }

    /// Points the adapters of other programs at a server as well.
    #[must_use]
    pub fn every_provider(self, url: &str) -> Self {
        self.anthropic(url)
            .env("OPENAI_BASE_URL", format!("{url}/v1"))
            .env("OPENAI_API_KEY", "sk-scripted")
            .env("GOOGLE_GEMINI_BASE_URL", url)
            .env("GEMINI_API_KEY", "scripted")
            .env("COPILOT_PROVIDER_BASE_URL", format!("{url}/v1"))
            .env("COPILOT_PROVIDER_TYPE", "openai")
            .env("COPILOT_PROVIDER_WIRE_API", "completions")
            .env("COPILOT_PROVIDER_API_KEY", "sk-scripted")
            .env("KIMI_MODEL_BASE_URL", format!("{url}/v1"))
            .env("KIMI_MODEL_API_KEY", "sk-scripted")
    }

    /// Adds the directory of a program that is not installed on the machine to PATH.
    #[must_use]
    pub fn with_path_of(self, program: &Path) -> Self {
        self.env("PATH", programs::path_with(program))
    }

    /// Sets the number of attempts at once.
    #[must_use]
    pub fn slots(mut self, slots: u32) -> Self {
        self.slots = slots;
        self
    }

    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }
}

impl Cluster {
    /// Starts a coordinator of the workspace's own programs.
    pub async fn start() -> Self {
        Self::start_with(Programs::own()).await
    }

    pub async fn start_with(programs: Programs) -> Self {
        let mut cluster = Self::prepare(programs);
        cluster.up().await;
        cluster
    }

    /// The directories of a system, in which nothing runs yet.
    #[must_use]
    pub fn prepare(programs: Programs) -> Self {
        let root = Root::new("kage-cluster-");
        for directory in ["home", "logs", "tmp", "repositories", OUTSIDE] {
            std::fs::create_dir(root.path().join(directory)).expect("a directory can be made");
        }
        let settings = root.path().join("home/.config/kage");
        std::fs::create_dir_all(&settings).expect("a directory can be made");
        let open = format!("[agent.contain]\nwrite = [{:?}]\n", root.path().join(OUTSIDE));
        std::fs::write(settings.join("config.toml"), open).expect("settings can be written");
        Self {
            programs,
            coordinator: None,
            agents: Vec::new(),
            url: String::new(),
            token: String::new(),
            root,
        }
    }

    /// Starts the coordinator: on any port the first time, then on the same one.
    pub async fn up(&mut self) {
        let listen = match self.url.strip_prefix("http://") {
            Some(listen) => listen.to_owned(),
            None => "127.0.0.1:0".to_owned(),
        };
        self.start_coordinator(&listen).await;
    }

    /// Changes the programs for later starts.
    pub fn set_programs(&mut self, programs: Programs) {
        self.programs = programs;
    }

    async fn start_coordinator(&mut self, listen: &str) {
        let data = self.data_dir();
        let endpoint = data.join("endpoint");
        // A killed coordinator could not remove it.
        let _absent = std::fs::remove_file(&endpoint);
        let (program, mut arguments) = self.programs.coordinator.clone();
        arguments.extend(["--data-dir".into(), data.clone().into()]);
        arguments.extend(["--listen".into(), listen.into()]);
        let launch = self.launch("coordinator", program, arguments, BTreeMap::new());
        let mut daemon = launch
            .start()
            .unwrap_or_else(|error| panic!("{launch:?} does not start: {error}"));
        self.url = wait_for("the coordinator says where it listens", async || {
            let ended = daemon.ended();
            assert!(ended.is_none(), "the coordinator ended ({ended:?}):\n{}", daemon.log());
            std::fs::read_to_string(&endpoint).ok()
        })
        .await
        .trim()
        .to_owned();
        let token = std::fs::read_to_string(data.join("token")).expect("a coordinator that listens has a token");
        self.token = token.trim().to_owned();
        self.coordinator = Some(daemon);
    }

    /// Starts an agent and waits until the coordinator knows it. Returns its process id.
    pub async fn add_agent(&mut self, options: AgentOptions) -> u32 {
        let state = self.agent_dir(&options.name);
        let adapters = state.join("adapters");
        std::fs::create_dir_all(&adapters).expect("a directory can be made");
        for (name, content) in &options.manifests {
            std::fs::write(adapters.join(format!("{name}.toml")), content).expect("a manifest can be written");
        }
        if !options.scripts.is_empty() {
            std::fs::write(adapters.join("shell.toml"), SHELL_MANIFEST).expect("a manifest can be written");
        }
        for (name, content) in &options.scripts {
            std::fs::write(adapters.join(format!("{name}.sh")), content).expect("a script can be written");
        }
        let (program, mut arguments) = self.programs.agent.clone();
        let url = options.coordinator_url.clone().unwrap_or_else(|| self.url.clone());
        arguments.extend(["--state".into(), state.into()]);
        arguments.extend(["--coordinator".into(), url.into()]);
        arguments.extend(["--token-file".into(), self.data_dir().join("token").into()]);
        arguments.extend(["--name".into(), options.name.clone().into()]);
        arguments.extend(["--adapters".into(), adapters.into()]);
        if options.slots > 0 {
            arguments.extend(["--slots".into(), options.slots.to_string().into()]);
        }
        for (key, value) in &options.labels {
            arguments.extend(["--label".into(), format!("{key}={value}").into()]);
        }
        let launch = self.launch(&options.name, program, arguments, options.environment);
        let daemon = launch
            .start()
            .unwrap_or_else(|error| panic!("{launch:?} does not start: {error}"));
        let pid = daemon.pid();
        self.agents.push(daemon);
        self.connected(&options.name).await;
        pid
    }

    /// Waits until an agent is connected.
    pub async fn connected(&mut self, name: &str) -> v1::Agent {
        let client = self.client();
        let daemon = self.agents.iter_mut().find(|daemon| daemon.launch().name == name);
        let daemon = daemon.expect("an agent that was added");
        wait_for(&format!("agent {name} is connected"), async || {
            let ended = daemon.ended();
            assert!(ended.is_none(), "agent {name} ended ({ended:?}):\n{}", daemon.log());
            let agents = list_agents(&client).await?;
            agents
                .into_iter()
                .find(|agent| agent.name == name && agent.state() == v1::AgentState::Connected)
        })
        .await
    }

    fn launch(
        &self,
        name: &str,
        program: PathBuf,
        arguments: Vec<OsString>,
        environment: BTreeMap<String, OsString>,
    ) -> Launch {
        let mut all: BTreeMap<String, OsString> = BTreeMap::from([
            ("HOME".to_owned(), self.root.path().join("home").into()),
            ("TMPDIR".to_owned(), self.root.path().join("tmp").into()),
            ("LANG".to_owned(), "C.UTF-8".into()),
            ("PATH".to_owned(), std::env::var_os("PATH").unwrap_or_default()),
            ("GIT_CONFIG_NOSYSTEM".to_owned(), "1".into()),
        ]);
        if let Some(filter) = std::env::var_os("KAGE_LOG") {
            all.insert("KAGE_LOG".to_owned(), filter);
        }
        all.extend(environment);
        Launch {
            name: name.to_owned(),
            program,
            arguments,
            environment: all,
            log: self.root.path().join("logs").join(name),
        }
    }

    /// A new connection to the coordinator. It reconnects when the coordinator was restarted.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::connect_lazy(&self.url, &self.token).expect("the coordinator wrote a usable address")
    }

    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The coordinator's process. Panics while it does not run.
    #[must_use]
    pub fn coordinator_pid(&self) -> u32 {
        self.coordinator.as_ref().expect("the coordinator runs").pid()
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// A folder outside of every worktree to which programs of sessions may write, whatever box they are in.
    #[must_use]
    pub fn outside(&self) -> PathBuf {
        self.root.path().join(OUTSIDE)
    }

    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.root.path().join("coordinator")
    }

    #[must_use]
    pub fn agent_dir(&self, name: &str) -> PathBuf {
        self.root.path().join("agents").join(name)
    }

    #[must_use]
    pub fn repository_dir(&self, name: &str) -> PathBuf {
        self.root.path().join("repositories").join(name)
    }

    /// Kills the coordinator as a power cut would, and starts it again on the same port and state.
    pub async fn crash_coordinator(&mut self) {
        self.kill_coordinator();
        self.up().await;
    }

    /// Kills the coordinator as a power cut would, and leaves it dead.
    pub fn kill_coordinator(&mut self) {
        let mut daemon = self.coordinator.take().expect("the coordinator runs");
        daemon.kill();
        // A traced coordinator is not the awaited child, and may end after its tracer.
        let lock = std::fs::File::open(self.data_dir().join("lock")).expect("it held its lock");
        lock.lock().expect("the lock can be waited for");
    }

    /// Sends a signal to the coordinator and to its children.
    pub fn signal_coordinator(&self, signal: Signal) {
        let daemon = self.coordinator.as_ref().expect("the coordinator runs");
        daemon.signal_group(signal);
    }

    /// The coordinator's exit status, if it ended by itself.
    pub fn coordinator_ended(&mut self) -> Option<std::process::ExitStatus> {
        self.coordinator.as_mut().and_then(Daemon::ended)
    }

    /// A daemon's log so far: "coordinator", or an agent's name.
    #[must_use]
    pub fn log(&self, name: &str) -> String {
        let path = self.root.path().join("logs").join(name);
        std::fs::read(path).map_or_else(|_| String::new(), |log| String::from_utf8_lossy(&log).into_owned())
    }

    /// Asks the coordinator to end, and starts it again on the same port and state.
    pub async fn stop_coordinator(&mut self) {
        let daemon = self.coordinator.take().expect("the coordinator runs");
        let status = daemon.stop().await;
        assert!(status.success(), "the coordinator ended with {status}");
        self.up().await;
    }

    /// Kills an agent as a power cut would; its programs go on until the agent is started again or
    /// the system is dropped.
    pub fn kill_agent(&mut self, name: &str) -> Launch {
        let index = self.agents.iter().position(|daemon| daemon.launch().name == name);
        let mut daemon = self.agents.remove(index.expect("an agent that was added"));
        daemon.kill();
        daemon.launch().clone()
    }

    /// Starts a killed agent again, with its old state.
    pub async fn revive_agent(&mut self, launch: &Launch) {
        let started = launch.start();
        let daemon = started.unwrap_or_else(|error| panic!("{launch:?} does not start: {error}"));
        self.agents.push(daemon);
        self.connected(&launch.name).await;
    }

    pub fn signal_agent(&self, name: &str, signal: Signal) {
        let daemon = self.agents.iter().find(|daemon| daemon.launch().name == name);
        daemon.expect("an agent that was added").signal(signal);
    }

    /// Waits until an agent that was asked to end has ended.
    pub async fn agent_ended(&mut self, name: &str) -> ExitStatus {
        let index = self.agents.iter().position(|daemon| daemon.launch().name == name);
        let mut daemon = self.agents.remove(index.expect("an agent that was added"));
        wait_for(&format!("agent {name} ends"), async || daemon.ended()).await
    }

    pub async fn agents(&self) -> Vec<v1::Agent> {
        list_agents(&self.client()).await.expect("the coordinator answers")
    }
}

async fn list_agents(client: &Client) -> Option<Vec<v1::Agent>> {
    let mut agents = Vec::new();
    let mut request = v1::ListAgentsRequest::default();
    loop {
        let page = client.fleet().list_agents(request).await.ok()?.into_inner();
        agents.extend(page.agents);
        if page.next_page_token.is_empty() {
            return Some(agents);
        }
        request = v1::ListAgentsRequest {
            page_token: page.next_page_token,
            page_size: 500,
        };
    }
}
