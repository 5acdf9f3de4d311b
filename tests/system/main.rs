//! The packages, as a user meets them: a booted Debian on which they are installed, joined, used,
//! upgraded, removed and purged. `make test-system` builds them first and runs this; it needs root.

mod life;
mod machine;
mod root;
mod rpm;
