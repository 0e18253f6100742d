//! The virtio-net header before each packet of a TUN with IFF_VNET_HDR.
