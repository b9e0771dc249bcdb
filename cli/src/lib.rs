//! iapctl: log in, connect, list, administer, audit
