//! In: web configuration, `access` and the files they name; out: who a request is from, and TLS. Knows no series and no
//! route; takes nothing but credentials for an identity.

mod authenticator;
mod certificate;
mod error;
mod files;
mod passwords;
mod reader;
mod readers;
mod reload;
mod schema;
mod tls;

pub use authenticator::{AccessPolicy, Authenticator};
pub use certificate::CertificateNames;
pub use error::AuthError;
pub use reader::Reader;
pub use readers::Refusal;
pub use reload::AuthFiles;

pub use crate::config::{Access, Credentials};
