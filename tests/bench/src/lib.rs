//! make bench: this path beside its peers
