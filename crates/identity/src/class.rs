//! Classes of peers, the authorities that may vouch for them, and sets of classes.

use std::fmt;

/// What kind of party a certificate speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A person who logged in.
    User,
    /// A program that joined with its own identity.
    Bot,
    /// A node agent.
    Agent,
    /// A proxy.
    Proxy,
    /// An auth server.
    Auth,
    /// A workload with a SPIFFE identity.
    Workload,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 6] = [
        Self::User,
        Self::Bot,
        Self::Agent,
        Self::Proxy,
        Self::Auth,
        Self::Workload,
    ];

    /// The name used in policy, records and errors.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Bot => "bot",
            Self::Agent => "agent",
            Self::Proxy => "proxy",
            Self::Auth => "auth",
            Self::Workload => "workload",
        }
    }

    /// Reads the name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.as_str() == text)
    }

    /// The authority that issues to this class, and whose certificate alone anchors it.
    pub const fn ca_class(self) -> CaClass {
        match self {
            Self::User | Self::Bot => CaClass::User,
            Self::Agent | Self::Proxy | Self::Auth => CaClass::System,
            Self::Workload => CaClass::Workload,
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The kinds of certificate authorities under the root, each with its own key and subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CaClass {
    /// Auth servers, proxies, agents and their service leaves.
    System,
    /// Users and bots.
    User,
    /// SPIFFE workloads.
    Workload,
}

impl CaClass {
    /// Every authority class.
    pub const ALL: [Self; 3] = [Self::System, Self::User, Self::Workload];

    /// The name used in subjects, files and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Workload => "workload",
        }
    }

    /// Reads the name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.as_str() == text)
    }
}

impl fmt::Display for CaClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The classes one listener or one RPC accepts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ClassSet(u8);

impl ClassSet {
    /// Nobody.
    pub const NONE: Self = Self(0);

    /// Exactly these classes.
    pub const fn of(classes: &[Class]) -> Self {
        let mut bits = 0;
        let mut rest = classes;
        while let [class, tail @ ..] = rest {
            bits |= Self::bit(*class);
            rest = tail;
        }
        Self(bits)
    }

    /// Whether the class is in the set.
    pub const fn contains(self, class: Class) -> bool {
        self.0 & Self::bit(class) != 0
    }

    /// Whether no class is in the set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    const fn bit(class: Class) -> u8 {
        match class {
            Class::User => 1,
            Class::Bot => 1 << 1,
            Class::Agent => 1 << 2,
            Class::Proxy => 1 << 3,
            Class::Auth => 1 << 4,
            Class::Workload => 1 << 5,
        }
    }
}

impl fmt::Debug for ClassSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(Class::ALL.into_iter().filter(|class| self.contains(*class)))
            .finish()
    }
}
