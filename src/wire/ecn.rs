//! ECN over the tunnel (RFC 6040).
