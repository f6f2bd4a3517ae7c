"""Tables in Markdown, from the rows of results. A function for each: of a machine or a study, by its file's name."""
