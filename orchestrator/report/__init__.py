"""Reports that need nothing else: text, tables and figures as Markdown and as one page of HTML."""
