"""Choice: fused ranking, selection arms, the selected dataset."""
