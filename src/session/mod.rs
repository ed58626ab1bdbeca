//! One session.
