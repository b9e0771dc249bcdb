//! Shared pieces of the tests: certificates, programs, folders, waiting
