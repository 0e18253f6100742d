//! One super-packet into the segments of its flow.
