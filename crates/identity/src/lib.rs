//! Names, certificate profiles, issuing and verification
