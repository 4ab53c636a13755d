import subprocess
import sys

import proponent


def test_every_public_name_resolves_and_the_table_is_sorted():
    assert proponent.__all__ == sorted(proponent.__all__)
    for name in proponent.__all__:
        thing = getattr(proponent, name)
        assert thing.__doc__, name
    assert set(proponent.__all__) <= set(dir(proponent))


def test_importing_loads_next_to_nothing():
    code = "import sys, proponent; print(sorted(m for m in ('torch', 'sklearn', 'pandas', 'xarray', 'numpy') if m in sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_a_wrong_name_is_an_attribute_error():
    try:
        proponent.Nothing
    except AttributeError as e:
        assert "Nothing" in str(e)
    else:
        raise AssertionError("resolved a name that does not exist")
