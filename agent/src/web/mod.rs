//! In: web configuration, `access` and the files they name; out: who a request is from, and TLS. Knows no series and no
//! route; takes nothing but credentials for an identity.

mod reader;

pub use reader::Reader;
