//! Follows a task: one stream of events and output, which continues after a restart of the
//! coordinator.

use std::time::Duration;

use kage_proto::client::Client;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::watch_task_response::Item;

/// How long a coordinator may be unreachable before following is given up.
const GONE_LIMIT: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Default)]
pub struct Request {
    /// A full id or a unique prefix.
    pub task: String,
    /// The output streams to receive besides events.
    pub output: Vec<v1::OutputStream>,
    pub session: Option<String>,
    /// Continue until the task has ended.
    pub follow: bool,
}

#[derive(Debug)]
pub struct Watch {
    client: Client,
    request: Request,
    cursor: String,
    stream: Option<tonic::Streaming<v1::WatchTaskResponse>>,
    pause: Duration,
    gone: Duration,
    /// The last answer was an item.
    going: bool,
}

impl Watch {
    /// Begins with everything that happened so far.
    #[must_use]
    pub const fn new(client: Client, request: Request) -> Self {
        Self {
            client,
            request,
            cursor: String::new(),
            stream: None,
            pause: FIRST_PAUSE,
            gone: Duration::ZERO,
            going: false,
        }
    }

    /// The next item; `None` after the last one.
    ///
    /// A connection that breaks is made again from the last item, so that nothing is
    /// missed or repeated.
    ///
    /// # Errors
    /// When the coordinator refuses, or is unreachable for a minute.
    pub async fn next(&mut self) -> Result<Option<Item>, ApiError> {
        loop {
            match self.step().await {
                Ok(item) => {
                    self.pause = FIRST_PAUSE;
                    self.gone = Duration::ZERO;
                    self.going = item.is_some();
                    return Ok(item);
                }
                // Whoever does not follow waits for no coordinator, but goes on where it was cut.
                Err(error) if error.is_transient() && (self.request.follow || self.going) && self.gone < GONE_LIMIT => {
                    tracing::info!(%error, "watch interrupted");
                    self.stream = None;
                    tokio::time::sleep(self.pause).await;
                    self.gone += self.pause;
                    self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn step(&mut self) -> Result<Option<Item>, ApiError> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let request = v1::WatchTaskRequest {
                    task_id: self.request.task.clone(),
                    cursor: self.cursor.clone(),
                    output: self.request.output.iter().map(|s| i32::from(*s)).collect(),
                    session: self.request.session.clone().unwrap_or_default(),
                    follow: self.request.follow,
                };
                let response = self.client.tasks().watch_task(request).await?;
                self.stream.insert(response.into_inner())
            }
        };
        while let Some(response) = stream.message().await? {
            self.cursor = response.cursor;
            // An item this build does not know is passed over; its cursor counts.
            if let Some(item) = response.item {
                return Ok(Some(item));
            }
        }
        Ok(None)
    }
}
