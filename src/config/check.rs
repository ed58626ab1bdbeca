//! Settings held against each other.
