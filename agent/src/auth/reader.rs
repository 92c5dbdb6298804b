//! What a request's credentials let it see. Knows no credentials.

use std::sync::Arc;

/// Who reads. Comes from credentials alone: no path, query, header or body can make one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reader {
    /// Sees everything.
    Operator,
    /// Sees the series of this tenant and nothing else.
    Tenant(Arc<str>),
}
