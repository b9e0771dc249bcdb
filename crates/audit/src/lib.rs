//! Event vocabulary, record chain and spool format
