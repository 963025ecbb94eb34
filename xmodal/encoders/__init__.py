"""What embeds: projections of region features, sentence encoders, extractors of region features."""
