"""What options cost in quality: perplexity on a text, and how far predictions move from the full model's."""
