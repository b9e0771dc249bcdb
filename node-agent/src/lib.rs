//! The node agent: ends mutual TLS, decides, records, dials the backend
