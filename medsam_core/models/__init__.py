"""The networks: RepViT student, SAM prompt encoder and mask decoder, ViT teachers, checkpoint loading."""
