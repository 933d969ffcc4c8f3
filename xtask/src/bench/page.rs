//! What was measured, as a table of docs/benchmarks.md.

use anyhow::Context as _;

use super::agent::Report;
use super::distribution::Distribution;

const BEGIN: &str = "<!-- bench agent -->\n";
const END: &str = "<!-- end -->";

/// Writes the table in place of the one that is there.
pub fn write(table: &str) -> anyhow::Result<()> {
    let path = berth_local::checkout().join("docs/benchmarks.md");
    let page = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    std::fs::write(&path, replaced(&page, table)?).with_context(|| format!("cannot write {}", path.display()))
}

/// Both tables of a report.
pub fn table(r: &Report) -> String {
    let mb = |kib: u64| kib as f64 * 1024.0 / 1e6;
    let (pss, rss) = (
        mb(r.probe.pss_kib + r.agent.pss_kib),
        mb(r.probe.rss_kib + r.agent.rss_kib),
    );
    let (probe, agent) = (r.probe.cpu_percent, r.agent.cpu_percent);
    let cpu = probe + agent;
    // A percent of a minute is 600 ms.
    let minute = |percent: f64| percent * 600.0;
    let inventory = &r.inventory;
    let rows = [
        "| what | probe | agent | sum | budget |".to_owned(),
        "|---|---|---|---|---|".to_owned(),
        format!(
            "| PSS, MB | {:.1} | {:.1} | **{pss:.1}** | 15 |",
            mb(r.probe.pss_kib),
            mb(r.agent.pss_kib)
        ),
        format!(
            "| RSS, MB | {:.1} | {:.1} | {rss:.1} | – |",
            mb(r.probe.rss_kib),
            mb(r.agent.rss_kib)
        ),
        format!("| CPU, % of a core | {probe:.3} | {agent:.3} | **{cpu:.3}** | 0.1 |"),
        format!(
            "| CPU, ms a minute | {:.0} | {:.0} | {:.0} | 60 |",
            minute(probe),
            minute(agent),
            minute(cpu)
        ),
        format!(
            "| API calls a minute, all agents | | | **{:.1}** | 0 |",
            r.agent_api_calls_per_minute
        ),
        format!("| node writes of the controller | | | {} | 0 |", r.node_writes),
        format!("| NVML calls of one inventory | {} | | | – |", inventory.nvml_calls),
    ];
    let latency = &r.latency;
    let times = [
        "| from → to, ms | n | p50 | p95 | p99 | max | budget |".to_owned(),
        "|---|---|---|---|---|---|---|".to_owned(),
        row("PCI function → label, no driver", &latency.pci_to_label, "1,000"),
        row("driver → full labels", &latency.driver_to_labels, "500"),
        row("XID 79 → out of placement", &latency.xid_to_exclusion, "100"),
        row("XID 79 → node condition", &latency.xid_to_condition, "250"),
        row("one inventory through the probe's socket", &inventory.wall, "–"),
    ];
    let note = r.note.as_deref().map(|note| format!(" {note}")).unwrap_or_default();
    format!(
        "{}\n\n{}\n\n{} GPUs a node, 1 Hz, {:.0} s, {} build, {}.{note}\n",
        rows.join("\n"),
        times.join("\n"),
        r.gpus,
        r.seconds,
        r.build,
        r.machine
    )
}

fn row(what: &str, times: &Distribution, budget: &str) -> String {
    let Distribution {
        n,
        p50_ms,
        p95_ms,
        p99_ms,
        max_ms,
    } = times;
    format!("| {what} | {n} | {p50_ms:.1} | {p95_ms:.1} | **{p99_ms:.1}** | {max_ms:.1} | {budget} |")
}

/// The page with the part between the marks replaced.
fn replaced(page: &str, table: &str) -> anyhow::Result<String> {
    let (head, rest) = page
        .split_once(BEGIN)
        .context("docs/benchmarks.md has no <!-- bench agent --> mark")?;
    let (_, tail) = rest
        .split_once(END)
        .context("docs/benchmarks.md has no <!-- end --> mark")?;
    Ok(format!("{head}{BEGIN}{table}{END}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_marked_part_of_the_page_is_replaced() {
        let page = format!("# a\n{BEGIN}old\n{END}\nb\n");
        assert_eq!(
            replaced(&page, "new\n").unwrap(),
            format!("# a\n{BEGIN}new\n{END}\nb\n")
        );
        assert!(replaced("# a\n", "new").is_err());
    }
}
