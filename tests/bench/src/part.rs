//! The parts of a run, each with the figures it replaces.

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// Many bytes over one stream and over eight.
    Bulk,
    /// Small messages there and back.
    Rtt,
    /// New sessions one after another and sixteen at once.
    New,
    /// What the key exchange costs on our path.
    Handshake,
    /// The first byte over slow links.
    Wan,
    /// Memory of sessions that do nothing.
    Idle,
    /// Ten thousand agents on one proxy.
    Agents,
    /// A decision, and a policy on its way to a hundred agents.
    Policy,
    /// PostgreSQL, read and unread.
    Postgres,
    /// New sessions among 10,000 half-open connections (`make half-open`).
    HalfOpen,
    /// A thousand agents, ten thousand users, locks (`make scale`).
    Scale,
}

impl Part {
    /// All of them, in the order of a run and of the report.
    pub(crate) const ALL: [Self; 11] = [
        Self::Bulk,
        Self::Rtt,
        Self::New,
        Self::Handshake,
        Self::Wan,
        Self::Idle,
        Self::Agents,
        Self::Policy,
        Self::Postgres,
        Self::HalfOpen,
        Self::Scale,
    ];

    /// The word that chooses it.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Bulk => "bulk",
            Self::Rtt => "rtt",
            Self::New => "new",
            Self::Handshake => "handshake",
            Self::Wan => "wan",
            Self::Idle => "idle",
            Self::Agents => "agents",
            Self::Policy => "policy",
            Self::Postgres => "postgres",
            Self::HalfOpen => "half-open",
            Self::Scale => "scale",
        }
    }

    /// Its headline in the report.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Bulk => "Many bytes",
            Self::Rtt => "Round trips",
            Self::New => "New sessions",
            Self::Handshake => "The key exchange",
            Self::Wan => "The first byte over 20 ms + 20 ms",
            Self::Idle => "Memory of an idle session",
            Self::Agents => "10,000 agents",
            Self::Policy => "Decisions and snapshots",
            Self::Postgres => "PostgreSQL, read and unread",
            Self::HalfOpen => "Among 10,000 half-open connections",
            Self::Scale => "1,000 agents, 100 services, 10,000 users",
        }
    }

    /// Whether `make bench` has it. The others take their time, and have a target of their own.
    pub(crate) const fn by_default(self) -> bool {
        !matches!(self, Self::HalfOpen | Self::Scale)
    }

    /// Whether it is measured beside other systems.
    pub(crate) const fn beside_others(self) -> bool {
        matches!(self, Self::Bulk | Self::Rtt | Self::New | Self::Wan | Self::Idle)
    }

    /// The part that a figure belongs to.
    pub(crate) fn of(figure: &str) -> Self {
        let begins = |beginning: &str| figure.starts_with(beginning);
        if figure.contains("half_open") {
            return Self::HalfOpen;
        }
        if figure.ends_with("_10k") {
            return Self::Agents;
        }
        let beginnings = [
            (Self::Rtt, &["rtt_", "auth_rtt_"][..]),
            (Self::New, &["new_", "auth_new_", "first_byte_ms_p"]),
            (Self::Wan, &["first_byte_ms_wan", "resume_ms_wan"]),
            (Self::Handshake, &["handshake_"]),
            (Self::Idle, &["idle_"]),
            (Self::Policy, &["policy_", "snapshot_"]),
            (Self::Postgres, &["copy_out_", "pgbench_"]),
            (Self::Scale, &["agent", "population", "demo_policy", "lock"]),
        ];
        let found = beginnings
            .iter()
            .find(|(_, any)| any.iter().any(|one| begins(one)));
        found.map_or(Self::Bulk, |(part, _)| *part)
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn each_figure_belongs_to_the_part_that_measures_it() {
        for (figure, part) in [
            ("path_cpu_s_per_gib_8", Part::Bulk),
            ("auth_cpu_s_per_gib_1", Part::Bulk),
            ("throughput_gbit_1", Part::Bulk),
            ("rtt_p99_us_1k_64", Part::Rtt),
            ("new_cpu_us_16", Part::New),
            ("first_byte_ms_p99_16", Part::New),
            ("first_byte_ms_wan", Part::Wan),
            ("resume_ms_wan", Part::Wan),
            ("handshake_cpu_us_x25519", Part::Handshake),
            ("idle_kib_agent", Part::Idle),
            ("agents_back_s_10k", Part::Agents),
            ("agents_back_s", Part::Scale),
            ("policy_us_1000", Part::Policy),
            ("snapshot_s_100", Part::Policy),
            ("copy_out_gbit_tcp", Part::Postgres),
            ("pgbench_per_s_ratio", Part::Postgres),
            ("new_session_ms_p50_among_10k_half_open", Part::HalfOpen),
            ("lock_cut_ms_p50", Part::Scale),
        ] {
            assert_eq!(Part::of(figure), part, "{figure}");
        }
    }

    #[test]
    fn a_part_is_chosen_by_its_word() {
        assert_eq!(Part::ALL.len(), Part::value_variants().len());
        for part in Part::ALL {
            assert_eq!(Part::from_str(part.word(), false).as_ref(), Ok(&part));
        }
    }
}
