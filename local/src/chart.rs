//! Installing our charts the way a user does: `helm upgrade --install`.

use std::path::PathBuf;

use serde_json::Value;

use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::files;

/// Charts in order of installation; each is also the name of its release.
const CHARTS: [&str; 2] = ["berth-crds", "berth"];
/// How long helm waits for every pod to be ready.
const PATIENCE: &str = "4m";

fn folder(chart: &str) -> PathBuf {
    crate::checkout().join("deploy/charts").join(chart)
}

impl Cluster {
    /// Installs or upgrades both charts and waits until every pod is ready.
    pub async fn install(&self, values: &Value) -> Result<()> {
        for chart in CHARTS {
            let path = folder(chart);
            if !path.join("Chart.yaml").is_file() {
                return Err(Error::MissingFile {
                    path,
                    hint: "the charts are part of the checkout",
                });
            }
        }
        let file = self.state().join("values.json");
        files::write(&file, format!("{values:#}").as_bytes(), 0o600)?;
        for chart in CHARTS {
            let (path, file) = (folder(chart).display().to_string(), file.display().to_string());
            let mut args = vec![
                "upgrade",
                "--install",
                chart,
                &path,
                "--namespace",
                self.namespace(),
                "--create-namespace",
            ];
            args.extend(["--wait", "--timeout", PATIENCE]);
            if chart == "berth" {
                args.extend(["--values", &file]);
            }
            if let Err(error) = self.helm(&args).await {
                return Err(self.explain(error).await);
            }
        }
        Ok(())
    }

    /// Takes the main chart out again; its pre-delete hook runs.
    pub async fn uninstall(&self) -> Result<()> {
        let args = [
            "uninstall",
            "berth",
            "--namespace",
            self.namespace(),
            "--wait",
            "--timeout",
            PATIENCE,
        ];
        match self.helm(&args).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.explain(error).await),
        }
    }

    /// A failed installation with what its pods say.
    async fn explain(&self, error: Error) -> Error {
        let Error::Command {
            command,
            status,
            output,
        } = error
        else {
            return error;
        };
        let pods = self
            .kubectl(&["get", "pods", "--namespace", self.namespace(), "--output", "wide"])
            .await;
        let mut text = format!("{output}\n{}", pods.unwrap_or_default());
        let logs = self.state().join("logs");
        let named = std::fs::read_dir(&logs).into_iter().flatten().flatten();
        let mut ours: Vec<PathBuf> = named.map(|entry| entry.path()).collect();
        ours.retain(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("berth"))
        });
        ours.sort();
        // One of a kind is enough: the agents of all nodes say the same.
        for path in ours.iter().take(4) {
            text.push_str(&format!("\n{}:\n{}\n", path.display(), files::tail(path, 8)));
        }
        Error::Command {
            command,
            status,
            output: text,
        }
    }
}
