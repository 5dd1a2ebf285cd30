"How README.md is made from nbs/index.ipynb: `jupyter nbconvert --config .ci/readme_config.py nbs/index.ipynb`."
c = get_config()  # noqa: F821, given by nbconvert


def name_the_language(notebook, resources):
    "Fences say `python`; the notebook itself holds no versions of one machine."
    notebook.metadata['language_info'] = {'name': 'python'}
    return notebook, resources


c.NbConvertApp.export_format = 'markdown'
c.NbConvertApp.output_base = 'README'
c.NbConvertApp.log_level = 30
c.FilesWriter.build_directory = '.'
c.Exporter.preprocessors = [name_the_language]
c.TagRemovePreprocessor.enabled = True
c.TagRemovePreprocessor.remove_input_tags = {'remove_input'}
