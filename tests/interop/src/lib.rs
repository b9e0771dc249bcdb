//! Certificates as other implementations see them
