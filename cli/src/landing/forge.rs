//! The page of a forge on which a pull request is opened, made of the URL of a remote. No input and
//! output: which program can open one is told, not run.

/// Which forge a host is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forge {
    GitHub,
    GitLab,
    Bitbucket,
    /// Bitbucket on a host of its own, which has other pages.
    BitbucketServer,
    /// Gitea, Forgejo and Codeberg.
    Gitea,
    /// The host says nothing about it.
    Unknown,
}

/// Where a remote is on the web. Credentials of its URL are no part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) forge: Forge,
    /// With a port, where the web page has one.
    pub(crate) host: String,
    /// `owner/name`, with as many folders as there are.
    pub(crate) path: String,
}

impl Address {
    /// Reads the URL of a remote: `https://`, `ssh://`, or `host:path`. `None` for what is on no host.
    pub(crate) fn parse(url: &str) -> Option<Self> {
        let url = url.trim();
        let (authority, path, is_web) = match url.split_once("://") {
            Some((scheme, rest)) => {
                let is_web = matches!(scheme, "http" | "https");
                if !is_web && !matches!(scheme, "ssh" | "git" | "git+ssh" | "ssh+git") {
                    return None;
                }
                let (authority, path) = rest.split_once('/')?;
                (authority, path, is_web)
            }
            // git takes a colon before any slash for that of a host.
            None => {
                let (authority, path) = url.split_once(':')?;
                (authority, path, false)
            }
        };
        if authority.contains('/') || authority.is_empty() {
            return None;
        }
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let host = host.to_ascii_lowercase();
        // The port of ssh is not that of the web.
        let host = if is_web {
            host
        } else {
            host.split(':').next()?.to_owned()
        };
        let host = match host.as_str() {
            "ssh.github.com" => "github.com".to_owned(),
            "altssh.gitlab.com" => "gitlab.com".to_owned(),
            "altssh.bitbucket.org" => "bitbucket.org".to_owned(),
            _ => host,
        };
        let path = path.split(['?', '#']).next()?.trim_matches('/');
        let path = path.strip_suffix(".git").unwrap_or(path);
        let path = path.trim_end_matches('/');
        let forge = forge_of(&host);
        let path = match forge {
            Forge::BitbucketServer => path.strip_prefix("scm/").unwrap_or(path),
            _ => path,
        };
        let is_printable = |text: &str| !text.is_empty() && !text.chars().any(|c| c.is_control() || c.is_whitespace());
        (is_printable(&host) && is_printable(path)).then(|| Self {
            forge,
            host,
            path: path.to_owned(),
        })
    }

    /// The page on which a pull request from `branch` of this repository is opened, into `target` of
    /// `upstream` (or of this repository). Without a target the forge takes its own.
    pub(crate) fn opening_page(&self, branch: &str, target: Option<&str>, upstream: Option<&Self>) -> String {
        let (host, path) = (&self.host, encoded_path(&self.path));
        let (head, base) = (encoded_path(branch), target.map(encoded_path));
        match self.forge {
            Forge::GitHub => {
                let into = upstream.map_or_else(|| path.clone(), |it| encoded_path(&it.path));
                let head = match upstream {
                    Some(_) => format!("{}:{head}", path.split('/').next().unwrap_or_default()),
                    None => head,
                };
                let range = base.map_or_else(|| head.clone(), |base| format!("{base}...{head}"));
                format!("https://{host}/{into}/compare/{range}?expand=1")
            }
            Forge::GitLab => {
                let mut page = format!(
                    "https://{host}/{path}/-/merge_requests/new?merge_request%5Bsource_branch%5D={}",
                    encoded(branch)
                );
                if let Some(target) = target {
                    page += &format!("&merge_request%5Btarget_branch%5D={}", encoded(target));
                }
                page
            }
            Forge::Bitbucket => {
                let mut page = format!("https://{host}/{path}/pull-requests/new?source={}", encoded(branch));
                if let Some(target) = target {
                    page += &format!("&dest={}", encoded(target));
                }
                page
            }
            Forge::BitbucketServer => {
                let (project, name) = path.rsplit_once('/').unwrap_or((&path, ""));
                let branch = encoded(&format!("refs/heads/{branch}"));
                format!("https://{host}/projects/{project}/repos/{name}/pull-requests?create&sourceBranch={branch}")
            }
            Forge::Gitea => {
                let base = base.unwrap_or_else(|| "main".to_owned());
                let (into, head) = match upstream {
                    Some(it) => {
                        let owner = path.split('/').next().unwrap_or_default();
                        (encoded_path(&it.path), format!("{owner}:{head}"))
                    }
                    None => (path, head),
                };
                format!("https://{host}/{into}/compare/{base}...{head}")
            }
            Forge::Unknown => format!("https://{host}/{path}"),
        }
    }

    /// The repository as `gh` and `glab` take it.
    pub(crate) fn for_tools(&self) -> String {
        match self.host.as_str() {
            "github.com" | "gitlab.com" => self.path.clone(),
            host if self.forge == Forge::GitLab => format!("https://{host}/{}", self.path),
            host => format!("{host}/{}", self.path),
        }
    }
}

fn forge_of(host: &str) -> Forge {
    let name = host.split(':').next().unwrap_or(host);
    if name.contains("github") {
        Forge::GitHub
    } else if name.contains("gitlab") {
        Forge::GitLab
    } else if name == "bitbucket.org" {
        Forge::Bitbucket
    } else if name.contains("bitbucket") {
        Forge::BitbucketServer
    } else if ["gitea", "forgejo", "codeberg"].iter().any(|it| name.contains(it)) {
        Forge::Gitea
    } else {
        Forge::Unknown
    }
}

fn encoded_path(text: &str) -> String {
    text.split('/').map(encoded).collect::<Vec<_>>().join("/")
}

fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => encoded.push(char::from(byte)),
            _ => encoded += &format!("%{byte:02X}"),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_remote_leads_to_the_page_without_credentials() {
        let github = "https://github.com/ann/tool/compare/main...kage/1-a%20b?expand=1";
        let gitlab = "https://gitlab.com/group/sub/tool/-/merge_requests/new?merge_request%5Bsource_branch%5D=kage%2F1-a%20b\
                      &merge_request%5Btarget_branch%5D=main";
        let bitbucket = "https://bitbucket.org/ann/tool/pull-requests/new?source=kage%2F1-a%20b&dest=main";
        let server = "https://bitbucket.corp:8443/projects/PROJ/repos/tool/pull-requests?create\
                      &sourceBranch=refs%2Fheads%2Fkage%2F1-a%20b";
        for (url, page) in [
            ("https://github.com/ann/tool.git", github),
            ("https://github.com/ann/tool/", github),
            ("https://ann:s3cret@github.com/ann/tool", github),
            ("https://s3cret@GitHub.com/ann/tool.git", github),
            ("git@github.com:ann/tool.git", github),
            ("github.com:ann/tool", github),
            ("ssh://git@github.com/ann/tool.git", github),
            ("ssh://git@ssh.github.com:443/ann/tool.git", github),
            ("git://github.com/ann/tool.git", github),
            ("git@gitlab.com:group/sub/tool.git", gitlab),
            ("https://oauth2:s3cret@gitlab.com/group/sub/tool.git", gitlab),
            ("git@bitbucket.org:ann/tool.git", bitbucket),
            ("https://ann@bitbucket.org/ann/tool.git", bitbucket),
            ("https://bitbucket.corp:8443/scm/PROJ/tool.git", server),
            (
                "https://codeberg.org/ann/tool.git",
                "https://codeberg.org/ann/tool/compare/main...kage/1-a%20b",
            ),
            (
                "ssh://git@gitea.corp:2222/ann/tool.git",
                "https://gitea.corp/ann/tool/compare/main...kage/1-a%20b",
            ),
            ("https://s3cret@git.corp/ann/tool.git", "https://git.corp/ann/tool"),
        ] {
            let found = Address::parse(url).unwrap_or_else(|| panic!("{url}"));
            assert_eq!(found.opening_page("kage/1-a b", Some("main"), None), page, "{url}");
            assert!(!format!("{found:?}").contains("s3cret"), "{url}");
        }
        for url in [
            "/srv/git/tool.git",
            "../tool",
            "file:///srv/tool.git",
            "",
            "https://github.com/",
            "ext::sh",
        ] {
            assert!(Address::parse(url).is_none_or(|it| it.forge == Forge::Unknown), "{url}");
        }
    }

    #[test]
    fn a_fork_asks_its_upstream() {
        let of = |url: &str| Address::parse(url).unwrap();
        let (fork, upstream) = (of("git@github.com:ann/tool.git"), of("https://github.com/org/tool"));
        let page = fork.opening_page("x", Some("dev"), Some(&upstream));
        assert_eq!(page, "https://github.com/org/tool/compare/dev...ann:x?expand=1");
        assert_eq!(
            fork.opening_page("x", None, None),
            "https://github.com/ann/tool/compare/x?expand=1"
        );
        assert_eq!(
            (
                fork.for_tools().as_str(),
                of("git@github.corp:a/b").for_tools().as_str()
            ),
            ("ann/tool", "github.corp/a/b")
        );
    }
}
