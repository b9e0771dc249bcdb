//! Configuration, TLS material, listeners, byte pump and spool files
