//! Skeleton: H-scheduler writes this.
