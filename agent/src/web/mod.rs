//! In: web configuration, `access` and the files they name; out: who a request is from, and TLS. Knows no series and no
//! route; takes nothing but credentials for an identity.

mod certificate;
mod door;
mod error;
mod files;
mod passwords;
mod reader;
mod readers;
mod schema;
mod tls;
mod watched;

pub use certificate::Names;
pub use door::{Door, Guard};
pub use error::WebError;
pub use reader::Reader;
pub use readers::Refusal;
pub use watched::Watched;

pub use crate::config::{Access, Credentials};
