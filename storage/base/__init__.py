"""What every room of storage stands on: errors, atomic files, locks, fingerprints, blobs, artefacts, modalities."""
