//! The recorded words of real programs, and those of any program.

use super::*;
use FailureKind as K;

fn check(cases: &[(&str, &str, FailureKind)]) {
    for (adapter, text, kind) in cases {
        assert_eq!(
            classify(adapter, text).map(|failure| failure.kind),
            Some(*kind),
            "{adapter}: {text}"
        );
    }
}

#[test]
fn words_of_programs_are_classified() {
    let cases = [
        ("claude-code", "Credit balance is too low", K::QuotaExhausted),
        (
            "claude-code",
            "You've hit your 5-hour limit · resets 10:24am (UTC)",
            K::QuotaExhausted,
        ),
        (
            "claude-code",
            "API Error: Request rejected (429) · slow down",
            K::RateLimited,
        ),
        (
            "claude-code",
            "API Error: 529 Overloaded. Try again later.",
            K::Overloaded,
        ),
        ("claude-code", "API Error: 500 internal", K::Network),
        ("claude-code", "Invalid API key · Fix external API key", K::Auth),
        ("claude-code", "Failed to authenticate. API Error: 403 no", K::Auth),
        ("claude-code", "Not logged in · Please run /login", K::Auth),
        ("claude-code", "Prompt is too long · 1", K::ContextOverflow),
        (
            "claude-code",
            "There's an issue with the selected model (x).",
            K::InvalidRequest,
        ),
        (
            "claude-code",
            "API Error: Connection refused connect ECONNREFUSED 127.0.0.1:1",
            K::Network,
        ),
        ("claude-code", "Request timed out. Check it.", K::Timeout),
        ("claude-code", "Reached maximum budget ($0.2)", K::BudgetExceeded),
        (
            "codex",
            "exceeded retry limit, last status: 429 Too Many Requests",
            K::RateLimited,
        ),
        (
            "codex",
            "You’ve hit your usage limit. Try again later.",
            K::QuotaExhausted,
        ),
        (
            "codex",
            "Quota exceeded. Check your plan and billing details.",
            K::QuotaExhausted,
        ),
        (
            "codex",
            "Selected model is at capacity. Please try a different model.",
            K::Overloaded,
        ),
        (
            "codex",
            "unexpected status 401 Unauthorized: x, url: http://h/v1",
            K::Auth,
        ),
        ("codex", "unexpected status 403 Forbidden: x", K::Auth),
        ("codex", "unexpected status 502 Bad Gateway: <html>", K::Network),
        (
            "codex",
            "stream disconnected before completion: closed early",
            K::Network,
        ),
        ("codex", "Missing environment variable: `KAGE_KEY`.", K::Auth),
        (
            "codex",
            "Codex ran out of room in the model's context window. Start anew.",
            K::ContextOverflow,
        ),
        ("gemini", "got status: 400. {\"reason\":\"API_KEY_INVALID\"}", K::Auth),
        (
            "gemini",
            "TerminalQuotaError: You have exhausted your daily quota",
            K::QuotaExhausted,
        ),
        ("qwen", "[API Error: 401 Incorrect API key provided]", K::Auth),
        ("aider", "litellm.AuthenticationError: AuthenticationError: no", K::Auth),
        ("aider", "litellm.RateLimitError: slow", K::RateLimited),
        (
            "my-cli",
            "fatal: could not read from remote repository",
            K::CorruptedState,
        ),
    ];
    check(&cases);
}

#[test]
fn recorded_ends_of_programs_are_classified() {
    check(&[
        (
            "claude-code",
            "Claude AI usage limit reached|1796317200",
            K::QuotaExhausted,
        ),
        (
            "claude-code",
            "You've hit your limit · resets Dec 3 at 5pm",
            K::QuotaExhausted,
        ),
        (
            "claude-code",
            "API Error: Request was aborted: Connection timed out",
            K::Network,
        ),
        ("claude-code", "Reached maximum number of turns (2)", K::TurnLimit),
        (
            "claude-code",
            "API Error: 400 input length and `max_tokens` exceed context limit: 190000 + 32000 > 200000",
            K::ContextOverflow,
        ),
        (
            "codex",
            "stream disconnected before completion: Transport error: network error: error decoding response body",
            K::Network,
        ),
        (
            "codex",
            "We’re currently experiencing high demand, which may cause temporary errors.",
            K::Overloaded,
        ),
        (
            "codex",
            "The model `fake-model-nope` does not exist or you do not have access to it.",
            K::InvalidRequest,
        ),
        (
            "codex",
            "Reconnecting... waiting for network (Connection failed: error sending request)",
            K::Network,
        ),
        (
            "codex",
            "unexpected status 403 Forbidden: Country, region, or territory not supported, url: http://127.0.0.1:18111/v1/responses",
            K::Auth,
        ),
        (
            "gemini",
            r#"[API Error: {"error":{"code":400,"message":"The input token count (1215000) exceeds the maximum number of tokens allowed (1048576).","status":"INVALID_ARGUMENT"}}]"#,
            K::ContextOverflow,
        ),
        (
            "gemini",
            r#"[API Error: {"error":{"code":400,"message":"API key not valid. Please pass a valid API key.","status":"INVALID_ARGUMENT","details":[{"reason":"API_KEY_INVALID"}]}}]"#,
            K::Auth,
        ),
        (
            "gemini",
            r#"[API Error: {"error":{"code":403,"message":"Permission denied on resource project fake.","status":"PERMISSION_DENIED"}}]"#,
            K::Auth,
        ),
        ("gemini", "[API Error: terminated]", K::Network),
        (
            "gemini",
            "[API Error: The model is overloaded. Please try again later.]",
            K::Overloaded,
        ),
        (
            "gemini",
            "[API Error: Quota exceeded for metric: generate_content_free_tier_requests, limit: 0]",
            K::QuotaExhausted,
        ),
        (
            "gemini",
            "[API Error: You exceeded your current quota. Please retry in 1s.\nSuggested retry after 1s.]",
            K::RateLimited,
        ),
        (
            "gemini",
            "[API Error: You have exhausted your daily quota on this model.]",
            K::QuotaExhausted,
        ),
        (
            "gemini",
            "[API Error: exception TypeError: fetch failed sending request]",
            K::Network,
        ),
        (
            "gemini",
            "Gemini CLI is not running in a trusted directory. To proceed, either use `--skip-trust`",
            K::AdapterUnavailable,
        ),
        (
            "qwen",
            "[API Error: 400 This model's maximum context length is 128000 tokens. However, your messages resulted in 215000 tokens.]",
            K::ContextOverflow,
        ),
        (
            "qwen",
            "[API Error: terminated (cause: UND_ERR_SOCKET: other side closed)]",
            K::Network,
        ),
        (
            "qwen",
            "[API Error: 403 Country, region, or territory not supported]",
            K::Auth,
        ),
        (
            "qwen",
            "[API Error: 404 The model `fake-model-nope` does not exist or you do not have access to it.]",
            K::InvalidRequest,
        ),
        (
            "qwen",
            "[API Error: 503 The engine is currently overloaded, please try again later]",
            K::Overloaded,
        ),
        (
            "qwen",
            "[API Error: 429 You exceeded your current quota, please check your plan and billing details.]",
            K::QuotaExhausted,
        ),
        (
            "qwen",
            "[API Error: 429 Rate limit reached for fake-model in organization org-fake on tokens per min (TPM): Limit 40000, Used 40000, Requested 1. Please try again in 1s.]",
            K::RateLimited,
        ),
        (
            "qwen",
            "[API Error: 500 The server had an error while processing your request. Sorry about that!]",
            K::Network,
        ),
        (
            "qwen",
            "Reached max session turns for this session. Increase the number of turns by specifying maxSessionTurns in settings.json.",
            K::TurnLimit,
        ),
        (
            "qwen",
            "Run aborted: wall-clock budget of 5s exceeded (--max-wall-time).",
            K::Timeout,
        ),
        (
            "opencode",
            "ContextOverflowError: This model's maximum context length is 128000 tokens.",
            K::ContextOverflow,
        ),
        (
            "opencode",
            "Cannot connect to API: Unable to connect. Is the computer able to access the url?",
            K::Network,
        ),
        ("opencode", "HTTP 401: Incorrect API key provided: sk-fake.", K::Auth),
        (
            "cline",
            "The request exceeds the model's context window and there is no conversation history to compact",
            K::ContextOverflow,
        ),
        (
            "cline",
            "You exceeded your current quota, please check your plan and billing details.",
            K::QuotaExhausted,
        ),
        (
            "cline",
            "Unable to connect. Is the computer able to access the url? (ConnectionRefused)",
            K::Network,
        ),
        (
            "kimi",
            "error: failed to run prompt: provider.auth_error: 401 Invalid Authentication",
            K::Auth,
        ),
        (
            "kimi",
            "error: failed to run prompt: provider.api_error: 400 Invalid request: Your request exceeded model token limit: 131072",
            K::ContextOverflow,
        ),
        (
            "aider",
            "Model openai/fake-model has hit a token limit!",
            K::ContextOverflow,
        ),
        (
            "aider",
            "Input tokens: ~1,652 of 0 -- possibly exhausted context window!",
            K::ContextOverflow,
        ),
        (
            "aider",
            "\nhttps://aider.chat/docs/troubleshooting/token-limits.html\n",
            K::ContextOverflow,
        ),
        (
            "aider",
            "Your estimated chat context of 200,000 tokens exceeds the 128,000 token limit for openai/x!",
            K::ContextOverflow,
        ),
        (
            "aider",
            "litellm.RateLimitError: RateLimitError: OpenAIException - You exceeded your \ncurrent quota, please check",
            K::QuotaExhausted,
        ),
        (
            "aider",
            "litellm.InternalServerError: InternalServerError: OpenAIException - Connection \nerror.",
            K::Network,
        ),
        (
            "aider",
            "litellm.NotFoundError: OpenAIException - The model `x` does not \nexist",
            K::InvalidRequest,
        ),
        // Other servers behind these programs.
        ("x", "context_length_exceeded", K::ContextOverflow),
        (
            "x",
            "Your input exceeds the context window of this model. Please adjust your input and try again.",
            K::ContextOverflow,
        ),
        (
            "x",
            "the request exceeds the available context size. try increasing the context size or enable context shift",
            K::ContextOverflow,
        ),
        ("x", "the input length exceeds the context length", K::ContextOverflow),
        ("x", "Input is too long for requested model.", K::ContextOverflow),
        (
            "x",
            "Please reduce the length of the messages or completion.",
            K::ContextOverflow,
        ),
        (
            "x",
            "This model's maximum prompt length is 131072 but the request contains 200000 tokens.",
            K::ContextOverflow,
        ),
    ]);
}

#[test]
fn the_plain_words_for_errors_are_classified() {
    let of_kind: [(FailureKind, &[&str]); 11] = [
        (
            K::Timeout,
            &[
                "timeout",
                "timed out",
                "operation timed out after 30 s",
                "TimeoutError: x",
                "httpx.ReadTimeout",
                "context deadline exceeded",
                "Timeout: no answer",
                "error: request timeout",
            ],
        ),
        (
            K::Network,
            &[
                "connection timed out",
                "Connection timed out (os error 110)",
                "connect timeout",
                "connection refused",
                "Connection reset by peer",
                "connect ECONNREFUSED 127.0.0.1:1",
                "read ECONNRESET",
                "write EPIPE",
                "Broken pipe (os error 32)",
                "getaddrinfo ENOTFOUND api.x",
                "curl: (6) Could not resolve host: api.x",
                "Temporary failure in name resolution",
                "dial tcp: lookup api.x: no such host",
                "SSL: CERTIFICATE_VERIFY_FAILED certificate verify failed",
                "unable to get local issuer certificate",
                "self-signed certificate in certificate chain",
                "tls: handshake failure",
                "x509: certificate signed by unknown authority",
                "invalid peer certificate: UnknownIssuer",
                "Network is unreachable",
                "TypeError: fetch failed",
                "requests.exceptions.ConnectionError: x",
            ],
        ),
        (
            K::CorruptedState,
            &[
                "corrupt",
                "index file corrupt",
                "object is corrupted",
                "malformed",
                "database disk image is malformed",
                "bad object HEAD",
                "fatal: bad object 1234",
                "invalid state",
                "InvalidState: x is in an invalid state",
                "merge conflict",
                "CONFLICT (content): Merge conflict in a.txt",
                "fatal: refusing to merge unrelated histories",
                "fatal: not a git repository (or any of the parent directories): .git",
                "Unable to create '/w/.git/index.lock': File exists.",
                "error: object file .git/objects/ab/cd is empty",
                "you need to resolve your current index first: unmerged files",
            ],
        ),
        (
            K::LogicError,
            &[
                "AssertionError",
                "AssertionError: expected 3, got 4",
                "assertion failed",
                "TypeError",
                "TypeError: unsupported operand",
                "KeyError",
                "KeyError: 'name'",
                "ValueError: invalid literal",
                "IndexError: list index out of range",
                "AttributeError: x",
                "ReferenceError: x is not defined",
                "NameError: y",
                "ZeroDivisionError: division by zero",
            ],
        ),
        (
            K::AdapterCrash,
            &[
                "thread 'main' panicked at src/main.rs:3:5",
                "panic: runtime error",
                "Segmentation fault (core dumped)",
                "Out of memory: Killed process 12 (node)",
                "FATAL ERROR: JavaScript heap out of memory",
                "MemoryError",
                "oom-killer: x",
            ],
        ),
        (
            K::DiskFull,
            &["no space left on device", "ENOSPC: write", "Disk quota exceeded"],
        ),
        (
            K::AdapterUnavailable,
            &[
                "permission denied",
                "EACCES: open '/x'",
                "sh: 1: codexx: command not found",
                "ModuleNotFoundError: No module named 'x'",
                "exec format error",
            ],
        ),
        (
            K::Auth,
            &[
                "git@github.com: Permission denied (publickey).",
                "unauthorized",
                "invalid api key",
            ],
        ),
        (K::RateLimited, &["rate limit", "429 Too Many Requests", "rate-limited"]),
        (K::Overloaded, &["overloaded", "503 Service Unavailable"]),
        (
            K::QuotaExhausted,
            &["usage limit reached", "Weekly limit reached", "Insufficient credits"],
        ),
    ];
    for (kind, texts) in of_kind {
        for text in texts {
            let found = classify("any-cli", text).map(|failure| failure.kind);
            assert_eq!(found, Some(kind), "{text}");
            let amid = format!("starting\n{text}\n");
            assert_eq!(classify("", &amid).unwrap().message, text.trim(), "{text}");
        }
    }
}

#[test]
fn options_and_names_are_no_words_of_errors() {
    for text in [
        "unknown option --timeout",
        "error: unexpected argument '--idle-timeout' found",
        "the room is large",
        "my-type-error-page",
        "typeerrors.md was not found",
    ] {
        assert_eq!(classify("x", text), None, "{text}");
    }
}
